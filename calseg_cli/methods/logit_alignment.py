"""Owns the map from every class's logits to the shared anchors, as tables, and what predictions they make.

Li et al. 2025 (BLDA), arXiv 2512.06886: equation 6 is the map, equation 7 the balanced prediction, equation 13 its
probabilities. Menon et al. 2021, arXiv 2007.07314, is logit adjustment.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.methods.logit_mixtures import VARIANCE_FLOOR, Mixtures

Tail = Literal["hold", "clip"]
_ANCHOR_NODES = 4096
_CONSTANT = 4 * VARIANCE_FLOOR  # cells of less variance have no shape that could be stretched
_CHUNK = 2**13
"""Pixels worked on at once: few enough for a processor's cache."""
_FEW = 2**8
"""The same where every pixel is looked up for every class."""


@dataclass(frozen=True)
class AlignmentTable:
    """Offsets D(z) = z' - z in logits of R rows (labels, of one domain or several) and C channels, at G nodes each.

    `offsets` (R,C,G) lie on the nodes `low` + i * `step`, both (R,C), between two quantiles of the cell. Beyond them
    `tail` "hold" keeps the offset, so that z' rises as z does; "clip" keeps z', as the authors' code does.
    """

    offsets: Tensor
    low: Tensor
    step: Tensor
    tail: Tail = "hold"

    def offset(self, logits: Tensor, rows: Tensor) -> Tensor:
        """D (B,C,H,W), float32, of logits (B,C,H,W) by the rows (B,H,W) int64 of their pixels; 0 where a row is < 0.

        Detached. A logit that is no number gets the lowest node's.
        """
        images, channels, *size = logits.shape
        values = logits.detach().reshape(images, channels, -1)
        places = rows.reshape(images, -1)
        found = torch.empty_like(values, dtype=self.offsets.dtype)
        for image in range(images):
            for start in range(0, values.shape[-1], _CHUNK):
                part = (image, ..., slice(start, start + _CHUNK))
                found[part] = self._looked_up(values[part], places[image, start : start + _CHUNK])
        return found.reshape(images, channels, *size)

    def hypotheses(self, logits: Tensor) -> Tensor:
        """D (R,C,P) of logits (C,P) as if they were of each row's label in turn; what `offset` finds, all at once."""
        rows, channels, nodes = self.offsets.shape
        first = torch.arange(rows * channels, device=logits.device, dtype=self._index_kind).mul_(nodes)
        first = first.view(rows, channels, 1)
        return self._between_nodes(logits.detach(), self.low[..., None], self.step[..., None], first)

    def _looked_up(self, values: Tensor, rows: Tensor) -> Tensor:
        """(C,P) of values (C,P) and rows (P,)."""
        channels, nodes = self.offsets.shape[1:]
        known = rows.clamp_min(0).to(self._index_kind)
        low, step = (part.t().index_select(1, known) for part in (self.low, self.step))
        first = known * channels + torch.arange(channels, device=known.device, dtype=known.dtype)[:, None]
        return self._between_nodes(values, low, step, first.mul_(nodes)).masked_fill_(rows < 0, 0)

    @property
    def _index_kind(self) -> torch.dtype:
        """The smaller one is read twice as fast."""
        return torch.int32 if self.offsets.numel() < 2**31 else torch.int64

    def _between_nodes(self, values: Tensor, low: Tensor, step: Tensor, first: Tensor) -> Tensor:
        """The offsets of values in cells whose nodes lie at low + i * step, `first` among all; shapes broadcast."""
        nodes = self.offsets.shape[2]
        place = (values - low).div_(step)
        inside = place.clamp(0, nodes - 1)
        past = inside.sub(place).mul_(step).nan_to_num_(0.0, 0.0, 0.0) if self.tail == "clip" else None
        node = inside.nan_to_num_(0.0).to(first.dtype).clamp_max_(nodes - 2)
        part = inside.sub_(node)
        pairs = torch.view_as_real(self._pairs.index_select(0, node.add_(first).reshape(-1)))
        found = torch.addcmul(pairs[:, 0].view(place.shape), pairs[:, 1].view(place.shape), part)
        return found if past is None else found.add_(past)

    @cached_property
    def _pairs(self) -> Tensor:
        """(R*C*G,) complex: each node's offset and the way to the next one's, so that both are one look-up."""
        ahead = torch.nn.functional.pad(self.offsets.diff(dim=2), (0, 1))
        return torch.complex(self.offsets, ahead).reshape(-1)

    def to(self, device: torch.device) -> "AlignmentTable":
        """On that device; itself where it is there."""
        if self.offsets.device == device:
            return self
        return AlignmentTable(self.offsets.to(device), self.low.to(device), self.step.to(device), self.tail)

    def __add__(self, other: "AlignmentTable") -> "AlignmentTable":
        """The other table's rows after these: of another domain."""
        offsets = torch.cat([self.offsets, other.offsets])
        return AlignmentTable(offsets, torch.cat([self.low, other.low]), torch.cat([self.step, other.step]), self.tail)


@torch.no_grad()
def alignment_table(
    cells: Mixtures,
    anchors: Mixtures,
    seen: Tensor | None = None,
    *,
    nodes: int = 256,
    tail: Tail = "hold",
    tail_quantile: float = 0.01,
) -> AlignmentTable:
    """The map of cells (C,C,K) to anchors (2,K) as a table: z' = G(F(z)), F the cell's distribution (equation 6).

    G is the inverse of the positive anchor's for a label's own channel, of the negative one's for all others. Labels
    that are not `seen` (C,) have offset 0, whatever their cells say. `tail_quantile` r in (0, 1/2): nodes lie between
    the quantiles r and 1 - r of a cell. A constant cell is moved to its anchor's median and not stretched. Raises
    ConfigError for an r or a number of nodes that makes no table.
    """
    if not 0 < tail_quantile < 0.5 or nodes < 2:
        raise ConfigError(
            f"no table of {nodes} nodes between the quantiles {tail_quantile} and {1 - tail_quantile}",
            "nodes is at least 2, the tail's quantile above 0 and below 0.5",
        )
    classes = cells.means.shape[0]
    levels = cells.means.new_tensor([tail_quantile, 0.5, 1 - tail_quantile])
    low, _, high = cells.quantiles(levels).unbind(dim=-1)
    marks = anchors.quantiles(levels)
    step = ((high - low) / (nodes - 1)).clamp_min(torch.finfo(low.dtype).eps)
    at = low[..., None] + step[..., None] * torch.arange(nodes, device=low.device)
    shares = cells.cdf(at).clamp_(tail_quantile, 1 - tail_quantile)
    own = torch.eye(classes, dtype=torch.bool, device=low.device)
    offsets = torch.empty_like(at)
    for row, which in enumerate((own, ~own)):
        moved = _inverse(anchors[row], shares[which], marks[row, 0], marks[row, 2]) - at[which]
        middle = marks[row, 1] - cells.mean[which][:, None]
        offsets[which] = torch.where((cells.variance[which] < _CONSTANT)[:, None], middle, moved)
    if seen is not None:
        offsets[~seen] = 0
    return AlignmentTable(offsets, low, step, tail)


def _inverse(mixture: Mixtures, shares: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where one mixture (K,) reaches the shares, each between those at `low` and `high`; by interpolation."""
    at = low + (high - low) * torch.linspace(0, 1, _ANCHOR_NODES, device=shares.device, dtype=shares.dtype)
    reached = mixture.cdf(at).cummax(dim=0).values
    after = torch.searchsorted(reached, shares.contiguous()).clamp_(1, _ANCHOR_NODES - 1)
    below, above = reached[after - 1], reached[after]
    # Between two modes a distribution may stand still: any place there will do.
    part = ((shares - below) / (above - below).clamp_min(torch.finfo(shares.dtype).tiny)).clamp_(0, 1)
    return torch.lerp(at[after - 1], at[after], part)


@torch.no_grad()
def balanced_scores(logits: Tensor, table: AlignmentTable, tau: float) -> tuple[Tensor, Tensor]:
    """(log s, p), both (B,C,H,W) float32: the balanced prediction of logits (B,C,H,W) by a table of C rows.

    For every hypothesis c, s_c = softmax(z + tau D_c(z))_c (equation 7); the class predicted has the greatest. s does
    not sum to 1, p = s / sum s does (equation 13). tau 0 gives the softmax, 1 the balanced classifier. The memory
    beside the results does not grow with the pixels.
    """
    scores = torch.empty_like(logits, dtype=table.offsets.dtype)
    flat, found = logits.flatten(2), scores.flatten(2)
    for image, start in ((image, start) for image in range(len(flat)) for start in range(0, flat.shape[2], _FEW)):
        values = flat[image, :, start : start + _FEW].to(scores.dtype)
        offsets = table.hypotheses(values) if tau else None
        found[image, :, start : start + _FEW] = hypothesis_scores(values, offsets, tau)
    scores = found.reshape(logits.shape)
    return scores, scores.softmax(dim=1)


def hypothesis_scores(values: Tensor, offsets: Tensor | None, tau: float) -> Tensor:
    """The log s (C,P) of logits (C,P) and the offsets (C,C,P) of every hypothesis, None for none (equation 7)."""
    if offsets is None:
        return values.log_softmax(dim=0)
    moved = torch.add(values, offsets, alpha=tau)
    own = moved.diagonal().t()  # a hypothesis's own channel
    return own - moved.logsumexp(dim=1)


def logit_adjustment(logits: Tensor, log_prior: Tensor, tau: float) -> Tensor:
    """The logits z - tau log(prior), (B,C,H,W): without the classes' frequencies, log_prior (C,) (Menon et al. 2021).

    A class that never occurs, of log -inf, is left as it is.
    """
    prior = torch.where(log_prior.isfinite(), log_prior, 0.0).to(logits)
    return logits - tau * prior[:, None, None]
