"""Owns the distributions of logits: a Gaussian mixture for every (label, channel), kept up while a network learns.

Li et al. 2025, "Balanced Learning for Domain Adaptive Semantic Segmentation" (BLDA), arXiv 2512.06886, sections 3.3.3,
3.3.4 and appendix D. Where the paper is silent docs/blda.md says what is this project's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Generator, Tensor, nn

from calseg_cli.errors import ConfigError
from calseg_cli.methods.labelled_pixels import LabelledPixels, stratified

VARIANCE_FLOOR = 1e-4
"""The least variance of a component, in squared logits; constant logits have it."""
_RELATIVE_FLOOR = 1e-3  # of the variance of all samples of the row
_LEAST_WEIGHT = 1e-6  # so that a component without samples may come back
_WIDTHS = 6.0  # standard deviations around the components between which quantiles are sought
_HALVINGS = 45


@dataclass(frozen=True)
class Mixtures:
    """One-dimensional Gaussian mixtures, one a row: `weights`, `means`, `variances` (...,K), of logits.

    Weights are at least 0 and sum to 1 over K; variances are above 0. Rows may have any leading shape, C x C here:
    the label first, then the channel.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __getitem__(self, rows: object) -> "Mixtures":
        """Some of the rows, by what indexes a tensor's first dimensions."""
        parts = (part[rows] for part in self.parts())  # type: ignore[index]
        return Mixtures(*parts)

    def reshape(self, *rows: int) -> "Mixtures":
        """The same rows in another shape."""
        return Mixtures(*(part.reshape(*rows, part.shape[-1]) for part in self.parts()))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Mixtures":
        """On that device, in that precision."""
        return Mixtures(*(part.to(device, dtype) for part in self.parts()))

    def parts(self) -> Iterator[Tensor]:
        """The three."""
        yield from (self.weights, self.means, self.variances)

    @property
    def mean(self) -> Tensor:
        """(...,) of the whole mixture."""
        return (self.weights * self.means).sum(dim=-1)

    @property
    def variance(self) -> Tensor:
        """(...,) of the whole mixture: within its components and between them."""
        apart = self.means - self.mean[..., None]
        return (self.weights * (self.variances + apart.square())).sum(dim=-1)

    def cdf(self, values: Tensor) -> Tensor:
        """F (...,N) in [0,1] at values (...,N) of each row; nondecreasing in them."""
        values = values.to(torch.promote_types(values.dtype, self.means.dtype))
        found = torch.zeros_like(values + self.means[..., :1])
        for weight, mean, variance in zip(*(part.unbind(dim=-1) for part in self.parts()), strict=True):
            scaled = (values - mean[..., None]) / variance.sqrt()[..., None]
            found.addcmul_(weight[..., None], torch.special.ndtr(scaled))
        return found.clamp_(0, 1)

    def quantiles(self, levels: Tensor) -> Tensor:
        """(...,Q): where F reaches `levels` (Q,), each in (0,1); by halving, to the precision of the numbers."""
        spread = _WIDTHS * self.variances.sqrt()
        deviations = self.variances.sqrt()[..., None, :]
        shape = (*self.means.shape[:-1], len(levels))
        low = (self.means - spread).amin(dim=-1, keepdim=True).expand(shape)
        high = (self.means + spread).amax(dim=-1, keepdim=True).expand(shape)
        for _ in range(_HALVINGS):
            middle = torch.lerp(low, high, 0.5)
            shares = torch.special.ndtr((middle[..., None] - self.means[..., None, :]) / deviations)
            below = (self.weights[..., None, :] * shares).sum(dim=-1) < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.lerp(low, high, 0.5)


def quantile_start(samples: Tensor, components: int) -> Mixtures:
    """Where EM begins on samples (R,N), finite: equal weights, means at quantiles (k + 1/2) / K, variance over K."""
    places = (torch.arange(components, dtype=torch.float64) + 0.5) / components * samples.shape[-1]
    means = samples.sort(dim=-1).values[..., places.long().to(samples.device)]
    variances = (samples.var(dim=-1, correction=0) / components).clamp_min(VARIANCE_FLOOR)
    return Mixtures(torch.full_like(means, 1 / components), means, variances[..., None].expand_as(means).contiguous())


def log_joint(samples: Tensor, mixtures: Mixtures) -> Tensor:
    """The log of pi_k N(x; mu_k, var_k), (R,K,N), at samples (R,N); without a floor."""
    level = mixtures.weights.log() - 0.5 * (log(2 * pi) + mixtures.variances.log())
    apart = samples[..., None, :] - mixtures.means[..., None]
    return apart.square_().mul_(-0.5 / mixtures.variances[..., None]).add_(level[..., None])


def log_likelihood(samples: Tensor, mixtures: Mixtures) -> Tensor:
    """(R,): the mean log density of the samples (R,N) of each row."""
    return log_joint(samples, mixtures).logsumexp(dim=-2).mean(dim=-1)


def em_step(samples: Tensor, mixtures: Mixtures) -> Mixtures:
    """One step of expectation maximisation on samples (R,N), R rows at once (section 3.3.4; in log space).

    Variances keep a floor: 1e-4, or a thousandth of the row's own. A component without samples keeps its mean.
    """
    middle = samples.mean(dim=-1, keepdim=True)
    centred = samples - middle  # squares of large numbers would lose what is small between them
    shares = log_joint(samples, mixtures).softmax(dim=-2)
    moments = torch.stack([torch.ones_like(centred), centred, centred.square()], dim=-1)
    total, first, second = (shares @ moments / samples.shape[-1]).unbind(dim=-1)
    alive = total > _LEAST_WEIGHT
    least = total.clamp_min(_LEAST_WEIGHT)
    mean = first / least
    floor = (_RELATIVE_FLOOR * moments[..., 2].mean(dim=-1, keepdim=True)).clamp_min(VARIANCE_FLOOR)
    variance = torch.maximum(second / least - mean.square(), floor)
    return Mixtures(
        least / least.sum(dim=-1, keepdim=True),
        torch.where(alive, mean + middle, mixtures.means),
        torch.where(alive, variance, torch.maximum(mixtures.variances, floor)),
    )


def fit_mixtures(samples: Tensor, components: int = 5, steps: int = 50, start: Mixtures | None = None) -> Mixtures:
    """Mixtures of samples (R,N) after so many steps of EM from `start`, by default from the samples' quantiles."""
    found = quantile_start(samples, components) if start is None else start
    for _ in range(steps):
        found = em_step(samples, found)
    return found


def blended(old: Mixtures, new: Mixtures, keep: Tensor) -> Mixtures:
    """So much, `keep` (R,) in [0,1], of the old mixtures' sums and the rest of the new ones', component by component.

    The sums are those of shares, of values and of their squares, so the mixture's mean and second moment move by
    exactly this; the paper's average of variances forgets what lies between the means.
    """
    kept, added = keep[..., None] * old.weights, (1 - keep)[..., None] * new.weights
    weights = kept + added
    share = kept / weights
    apart = old.means - new.means
    variances = torch.lerp(new.variances, old.variances, share) + share * (1 - share) * apart.square()
    return Mixtures(weights / weights.sum(dim=-1, keepdim=True), torch.lerp(new.means, old.means, share), variances)


@dataclass(frozen=True)
class MixtureOptions:
    """`components` K of a mixture and `em_steps` T a batch; `momentum` in [0,1) is what a row keeps of itself a batch.

    A label's row is fitted to a batch from `min_pixels` pixels on, on `max_samples` of them; each anchor on
    `anchor_samples`. Raises ConfigError for what is out of range.
    """

    components: int = 5
    em_steps: int = 3
    momentum: float = 0.99
    min_pixels: int = 100
    max_samples: int = 1024
    anchor_samples: int = 16384

    def __post_init__(self) -> None:
        counts = (self.components, self.em_steps, self.min_pixels, self.max_samples, self.anchor_samples)
        if min(counts) < 1 or not 0 <= self.momentum < 1:
            raise ConfigError(
                f"mixtures of logits cannot be kept with {self}", "momentum lies in [0,1), all else is at least 1"
            )


class MixtureRows(nn.Module):
    """Mixtures (R,K) that follow a stream of samples; all their memory are buffers, float32.

    `updates` (R,) int64 counts how often a row was fitted, `stale` (R,) the updates since then, 1 when it was in the
    last one.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    updates: Tensor
    stale: Tensor

    def __init__(self, rows: int, options: MixtureOptions) -> None:
        super().__init__()
        self.options = options
        shape = (rows, options.components)
        self.register_buffer("weights", torch.full(shape, 1 / options.components))
        self.register_buffer("means", torch.zeros(shape))
        self.register_buffer("variances", torch.ones(shape))
        self.register_buffer("updates", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("stale", torch.ones(rows, dtype=torch.int64))

    @property
    def mixtures(self) -> Mixtures:
        """Of all rows; those never fitted are standard normal and mean nothing."""
        return Mixtures(self.weights, self.means, self.variances)

    @property
    def seen(self) -> Tensor:
        """(R,) bool: rows that have been fitted."""
        return self.updates > 0

    @torch.no_grad()
    def update(self, samples: Tensor, rows: Tensor) -> None:
        """Move `rows` (A,) int64, all different, towards samples (A,N), finite; all others grow stale.

        A row keeps momentum^stale of itself, and at its n-th update no more than (n - 1) / n: first it is the fit.
        """
        old, known = self.mixtures[rows], self.seen[rows]
        start = old
        if not bool(known.all()):
            start = _chosen(known, old, quantile_start(samples, self.options.components))
        fitted = fit_mixtures(samples, steps=self.options.em_steps, start=start)
        found = _chosen(known, blended(start, fitted, self._kept(rows)), fitted)
        whole = torch.stack([part.isfinite().all(dim=-1) for part in found.parts()]).all(dim=0)
        self.set(rows, _chosen(whole, found, old))
        self.stale += 1
        self.stale[rows] = torch.where(whole, 1, self.stale[rows])
        self.updates[rows] += whole.long()

    def _kept(self, rows: Tensor) -> Tensor:
        count = self.updates[rows].to(self.means.dtype)
        return (count / (count + 1)).clamp_max(self.options.momentum) ** self.stale[rows]

    @torch.no_grad()
    def set(self, rows: Tensor, mixtures: Mixtures) -> None:
        """Put mixtures (A,K) in place of `rows` (A,), without counting it."""
        self.weights[rows], self.means[rows] = mixtures.weights, mixtures.means
        self.variances[rows] = mixtures.variances


class LogitCells(nn.Module):
    """Mixtures of one domain's logits for every (label, channel): rows label * C + channel of `rows`.

    `pixels` (C,) int64 counts the labelled pixels that every label was fitted on or could have been.
    """

    pixels: Tensor

    def __init__(self, num_classes: int, options: MixtureOptions | None = None) -> None:
        super().__init__()
        self.num_classes, self.options = num_classes, options or MixtureOptions()
        self.rows = MixtureRows(num_classes * num_classes, self.options)
        self.register_buffer("pixels", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def mixtures(self) -> Mixtures:
        """(C,C,K): label, channel, component."""
        return self.rows.mixtures.reshape(self.num_classes, self.num_classes)

    @property
    def seen(self) -> Tensor:
        """(C,) bool: labels with enough pixels at least once."""
        return self.rows.seen.reshape(self.num_classes, self.num_classes).all(dim=1)

    @torch.no_grad()
    def update(self, logits: Tensor, pixels: LabelledPixels, generator: Generator) -> None:
        """Fit the labels that have enough pixels in a batch of logits (B,C,H,W); without one nothing changes.

        What is drawn follows from `generator`, which is on the CPU; a label's draw is the same whichever others are
        there.
        """
        self.pixels += pixels.counts
        rows = (pixels.counts >= self.options.min_pixels).nonzero()[:, 0]
        size = (self.num_classes, self.options.max_samples)
        drawn = torch.rand(size, generator=generator, dtype=torch.float64)
        if not len(rows):
            return
        samples = pixels.logits(logits, stratified(pixels.counts, size[1], drawn)[rows])
        channels = torch.arange(self.num_classes, device=rows.device)
        cells = (rows[:, None] * self.num_classes + channels).reshape(-1)
        self.rows.update(samples.transpose(1, 2).reshape(len(cells), -1), cells)


class LogitAnchors(nn.Module):
    """The two distributions that all cells are aligned to: row 0 of logits of a pixel's label, row 1 of all others.

    Pixels count alike, so large classes do more (paper, section 3.3.3). With `frozen`, a buffer, they stay as set.
    """

    frozen: Tensor

    def __init__(self, options: MixtureOptions | None = None) -> None:
        super().__init__()
        self.options = options or MixtureOptions()
        self.rows = MixtureRows(2, self.options)
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    @property
    def mixtures(self) -> Mixtures:
        """(2,K): the positive anchor, the negative one."""
        return self.rows.mixtures

    @property
    def seen(self) -> Tensor:
        """() bool: both have been fitted or set."""
        return self.rows.seen.all()

    @property
    def gap(self) -> Tensor:
        """() the positive anchor's mean less the negative one's, in logits; at most 0 where nothing is known yet."""
        mean = self.mixtures.mean
        return mean[0] - mean[1]

    def freeze(self, mixtures: Mixtures) -> None:
        """Take these, (2,K), for good. Raises ConfigError for another number of components."""
        if mixtures.means.shape != self.rows.means.shape:
            raise ConfigError(
                f"anchors of shape {tuple(mixtures.means.shape)} in place of {tuple(self.rows.means.shape)}",
                "set components to what the anchors were made with",
            )
        self.rows.set(torch.arange(2, device=self.frozen.device), mixtures.to(self.frozen.device, torch.float32))
        self.rows.updates.fill_(1)
        self.frozen.fill_(True)

    @torch.no_grad()
    def update(self, logits: Tensor, pixels: LabelledPixels, generator: Generator) -> None:
        """Fit both to a batch, as `LogitCells.update` has it; from `min_pixels` labelled pixels on, if not frozen."""
        counts, total, size = pixels.counts, pixels.counts.sum(), self.options.anchor_samples
        drawn = torch.rand(2, size, generator=generator, dtype=torch.float64)
        if bool(self.frozen) or int(total) < self.options.min_pixels:
            return
        classes = logits.shape[1]
        places = stratified(total[None], size, drawn[:1])
        values = pixels.logits(logits, places)[0]
        own = torch.repeat_interleave(torch.arange(classes, device=counts.device), counts)[places[0]]
        other = (own + 1 + (drawn[1].to(own.device) * (classes - 1)).long()) % classes
        samples = torch.stack([values.gather(1, one[:, None])[:, 0] for one in (own, other)])
        self.rows.update(samples, torch.arange(2, device=samples.device))


def _chosen(which: Tensor, first: Mixtures, second: Mixtures) -> Mixtures:
    pairs = zip(first.parts(), second.parts(), strict=True)
    return Mixtures(*(torch.where(which[..., None], one, other) for one, other in pairs))
