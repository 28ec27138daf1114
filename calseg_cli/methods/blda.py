"""Owns BLDA in self-training: cross-entropy on logits that are moved away from the anchors of all classes.

Li et al. 2025, "Balanced Learning for Domain Adaptive Semantic Segmentation", arXiv 2512.06886, equations 9 and 10.
docs/blda.md says what is this project's.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Generator, Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.draws import draw_generator
from calseg_cli.engine.method import ParameterGroup
from calseg_cli.errors import ConfigError
from calseg_cli.methods.labelled_pixels import labelled_pixels
from calseg_cli.methods.logit_alignment import AlignmentTable, Tail, alignment_table
from calseg_cli.methods.logit_mixtures import LogitAnchors, LogitCells, MixtureOptions, Mixtures
from calseg_cli.methods.self_training_view import PLUGIN_PURPOSES, Plugin, Term, View

_SOURCE_CELLS, _TARGET_CELLS, _ANCHORS = range(PLUGIN_PURPOSES + 50, PLUGIN_PURPOSES + 53)  # what a stream is for


@dataclass(frozen=True)
class BLDAOptions:
    """See docs/blda.md. `tau` is the strength of the offsets; the first `warm_up` steps only gather statistics.

    `tail` and `tail_quantile` say what becomes of outliers, `nodes` how fine the tables are. `density_weight` above 0
    adds the density head's loss.
    """

    tau: float = 0.1
    warm_up: int = 30
    nodes: int = 256
    tail: Tail = "hold"
    tail_quantile: float = 0.01
    density_weight: float = 0.0
    mixtures: MixtureOptions = field(default_factory=MixtureOptions)


@dataclass(frozen=True)
class Densities:
    """Of a mix: `values` (B,H,W) in [0,1], how much of its label's logits a pixel surpasses; `known` bool where."""

    values: Tensor
    known: Tensor


class BLDA(Plugin):
    """Teaches z - tau D(z) in place of the logits z; D, which has no gradient, moves a cell's logits to its anchor.

    A pixel's label and domain name its cells. Source cells and anchors learn from the source images, target cells from
    the target's pixels in the mix, each before the offsets of the same batch are read; masked images are moved by the
    target's cells, which do not learn from them. The network, the teacher and what they predict stay as they are.
    Pixels without a label, or of one that was never seen often enough, have offset 0; so have all while the positive
    anchor lies below the negative one.
    """

    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        options: BLDAOptions | None = None,
        *,
        seed: int = 0,
        anchors: Mixtures | None = None,
    ) -> None:
        super().__init__()
        self.options, self.seed = options or BLDAOptions(), seed
        self.warm_up_steps = self.options.warm_up
        classes, mixtures = int(network.num_classes), self.options.mixtures  # type: ignore[arg-type]
        self.source, self.target = LogitCells(classes, mixtures), LogitCells(classes, mixtures)
        self.anchors = LogitAnchors(mixtures)
        if anchors is not None:
            self.anchors.freeze(anchors)
        self.density = _density_head(network, seed) if self.options.density_weight else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Nothing of what follows outlives a step.
        self._tables: dict[str, AlignmentTable] = {}
        self._densities: Densities | None = None
        self._moved: Tensor | None = None

    def check_source_free(self) -> None:
        """Refuse anchors that would have to be learned."""
        if not bool(self.anchors.frozen):
            raise ConfigError(
                "blda learns its anchors from source images, and source_free has none",
                "--anchors FILE (adapt.blda.anchors) gives them; calseg logit-statistics makes it of the source",
            )

    def correct(self, logits: Tensor, labels: Tensor, domain: Tensor, term: Term) -> Tensor:
        """The logits less tau D, (B,C,H,W). Source images and mixes are learned from, masked images are not."""
        source = domain[:, 0]
        self._learn(logits, labels, source, term)
        if not self._acts():
            return logits
        rows = torch.where(source, labels, labels + self.source.num_classes).masked_fill(labels == IGNORE, -1)
        if self.density is not None and term == "mix":
            self._densities = self._densities_of(logits, labels, rows)
        if not self.options.tau:
            return logits
        offsets = self._offsets(logits, rows, source)
        if term != "masked":
            self._moved = self.options.tau * torch.linalg.vector_norm(offsets, 1) / offsets.numel()
        return torch.sub(logits, offsets, alpha=self.options.tau)

    def _learn(self, logits: Tensor, labels: Tensor, source: Tensor, term: Term) -> None:
        """From the clean source images and from the target's pixels of the mix; masked images are another thing."""
        if term == "source":
            pixels = labelled_pixels(logits, labels, ranks=self.ranks)
            self.source.update(logits, pixels, self._generator(_SOURCE_CELLS))
            self.anchors.update(logits, pixels, self._generator(_ANCHORS))
            self._tables.clear()
        elif term == "mix":
            pixels = labelled_pixels(logits, labels, ~source, self.ranks)
            self.target.update(logits, pixels, self._generator(_TARGET_CELLS))
            self._tables.pop("target", None)

    def _offsets(self, logits: Tensor, rows: Tensor, source: Tensor) -> Tensor:
        """D (B,C,H,W) by the rows (B,H,W) of both domains; of a domain that does not occur no table is built."""
        if not bool(source.any()):
            return self._table("target", self.target).offset(logits, rows - self.source.num_classes)
        table = self._table("source", self.source)
        if not bool(source.all()):
            table = table + self._table("target", self.target)
        return table.offset(logits, rows)

    def _generator(self, purpose: int) -> Generator:
        return draw_generator(self.seed, int(self.steps), purpose)

    def _acts(self) -> bool:
        """After the warm-up, once both anchors are known and lie in order."""
        late = int(self.steps) >= self.options.warm_up
        return late and bool(self.anchors.seen & (self.anchors.gap > 0))

    def _table(self, domain: str, cells: LogitCells) -> AlignmentTable:
        """Of a domain's cells as they are now; built once after they changed."""
        if domain not in self._tables:
            options = self.options
            self._tables[domain] = alignment_table(
                cells.mixtures,
                self.anchors.mixtures,
                cells.seen,
                nodes=options.nodes,
                tail=options.tail,
                tail_quantile=options.tail_quantile,
            )
        return self._tables[domain]

    @torch.no_grad()
    def _densities_of(self, logits: Tensor, labels: Tensor, rows: Tensor) -> Densities:
        """F of each pixel's own domain and label at its label's logit (equation 10)."""
        seen = torch.cat([self.source.seen, self.target.seen])
        known, place = (rows >= 0) & seen[rows.clamp_min(0)], rows.clamp_min(0)
        own = logits.gather(1, labels.masked_fill(labels == IGNORE, 0)[:, None])[:, 0]
        found = _diagonal(self.source.mixtures, self.target.mixtures)[place].cdf(own[..., None])[..., 0]
        return Densities(found, known & found.isfinite())

    def terms(self, view: View) -> dict[str, Tensor]:
        """The term "density", where it has a weight: the squared error of the head, weighted as the mix's pixels are.

        Its mean is over the mix's pixels whose density is known, of both domains.
        """
        densities, self._densities = self._densities, None
        if self.density is None or densities is None or view.student_features is None:
            return {}
        guess = view.dense(self.density(view.student_features))[:, 0]
        error = (guess - densities.values).square() * view.weights
        known = self.ranks.total(densities.known.sum())
        total = torch.where(densities.known, error, 0.0).sum() / known.clamp_min(1)
        return {"density": self.options.density_weight * total}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The density head's, where there is one."""
        if self.density is None:
            return []
        return [ParameterGroup("density head", "head", list(self.density.parameters()), decay=False)]

    def after_step(self, step: int) -> None:
        """Count the step and forget what belonged to it."""
        self.steps += 1
        self._tables, self._densities = {}, None

    def report(self) -> dict[str, float]:
        """How many labels each domain has cells of, the anchors' distance in logits, the mean size of tau D."""
        found = {
            "source_labels": float(self.source.seen.sum()),
            "target_labels": float(self.target.seen.sum()),
            "anchor_gap": float(self.anchors.gap),
        }
        if self._moved is None:
            return found
        return {**found, "offset": float(self.ranks.total(self._moved) / self.ranks.world)}


def build_blda(network: nn.Module, *, seed: int = 0, anchors: Mixtures | None = None, **options: Any) -> BLDA:
    """The plugin from the options of both dataclasses, by their names. Raises TypeError for another name."""
    names = {one.name for one in fields(MixtureOptions)}
    mixtures = MixtureOptions(**{name: value for name, value in options.items() if name in names})
    chosen = {name: value for name, value in options.items() if name not in names}
    return BLDA(network, BLDAOptions(mixtures=mixtures, **chosen), seed=seed, anchors=anchors)


def _density_head(network: nn.Module, seed: int) -> nn.Conv2d:
    """A 1x1 convolution of the features that a network's last 1x1 convolution reads; it begins at one half."""
    head = getattr(network, "head", None)
    last = next((one for one in (getattr(head, "classifier", None), head) if isinstance(one, nn.Conv2d)), None)
    if last is None or not hasattr(network, "features"):
        raise ConfigError(
            f"blda: the network {getattr(network, 'name', '')!r} shows no features that its last layer reads",
            "set adapt.blda.density_weight: 0",
        )
    density = nn.Conv2d(last.in_channels, 1, 1)
    with torch.no_grad():
        drawn = torch.randn(density.weight.shape, generator=draw_generator(seed, PLUGIN_PURPOSES + 53))
        density.weight.copy_(drawn / last.in_channels)
        assert density.bias is not None
        density.bias.fill_(0.5)
    return density


def _diagonal(*domains: Mixtures) -> Mixtures:
    """A label's mixtures of its own channel, domain after domain: rows as in the tables."""
    parts = zip(*(domain.parts() for domain in domains), strict=True)
    return Mixtures(*(torch.cat([one.diagonal().t() for one in part]) for part in parts))
