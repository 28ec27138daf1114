"""Owns what a method on the self-training frame may see of a step (View) and where it may act in it (Plugin)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Generator, Tensor, nn

from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.draws import draw_generator
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.method import ParameterGroup

if TYPE_CHECKING:
    from calseg_cli.artifacts.geometry import Geometry

Term = Literal["source", "mix", "masked"]
"""The frame's losses whose logits plugins may correct, in the order of a step; not every run has all of them."""

PLUGIN_PURPOSES = 100
"""Random draws of plugins are numbered from here on; those below are the frame's own."""


@dataclass(frozen=True)
class View:
    """What a step has seen. B images of H x W pixels, C classes, a network whose grid is h x w with D features.

    `source_images`, `target_images` and `held_out_images` (B,3,H,W) are as the stream gives them; `source_labels` and
    `held_out_labels` (B,H,W) int64 with 255 where nothing is known; the held-out ones are None unless a plugin needs
    them. `masks` (B,1,H,W) bool is True where the mix shows the source. `teacher_logits` (B,C,h,w) are the teacher's
    raw ones on the target's images, `teacher_labels` (B,H,W) the classes it names, `source_weights` (B,H,W) how much
    each source pixel counts, 0 without a label, `target_weights` (B,H,W) each target pixel and `weights` (B,H,W) each
    pixel of the mix. `mixed_images` (B,3,H,W) is the strongly augmented mix that the student was shown,
    `student_features` (B,D,h,w) its features there with their graph; None where the network has no `features` and
    `classify`. `geometry` says where the grid lies on the pixels. Without source images the batch's other target images
    stand in the source's place, with the teacher's labels and their own weights. Where several
    processes share a batch all this is of this one's images.
    """

    step: int
    seed: int
    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor
    held_out_images: Tensor | None
    held_out_labels: Tensor | None
    masks: Tensor
    teacher_logits: Tensor
    teacher_labels: Tensor
    source_weights: Tensor
    target_weights: Tensor
    geometry: "Geometry"
    mixed_images: Tensor
    student_features: Tensor | None
    weights: Tensor
    augmentation: StrongAugmentation
    student: nn.Module

    @property
    def mixed_features(self) -> Tensor | None:
        """The student's features (B,D,h,w) of the mix, detached."""
        return None if self.student_features is None else self.student_features.detach()

    def generator(self, purpose: int) -> Generator:
        """A plugin's random numbers of this step, on the CPU: one stream a purpose, counted from 0."""
        return draw_generator(self.seed, self.step, PLUGIN_PURPOSES + purpose)

    def dense(self, logits: Tensor) -> Tensor:
        """Logits or a map (B,.,h,w) of the network's grid at the images' size (B,.,H,W), float32."""
        return upsample_logits(logits, self.geometry)


class Plugin(nn.Module):
    """What a paper changes in self-training: every opening may be left as it is. All its memory is its state dict.

    Within a step `targets` of all plugins comes first, then `correct` in the losses, then `terms`; `after_step` when
    the optimiser and the teacher have moved. The first plugin acts first; of several `targets` the last one given
    counts. `needs_held_out` asks for labelled source images that the student is not trained on.
    """

    needs_held_out: ClassVar[bool] = False
    warm_up_steps: int = 0
    """Steps at the start in which `targets` is not asked."""
    ranks: Ranks = ALONE
    """The processes that share every batch; the frame sets it. Terms are to be this one's part of the whole batch's."""

    def targets(self, view: View, logits: Tensor) -> Tensor | None:
        """Probabilities (B,C,H,W) to teach target pixels, or None for the frame's own labels.

        `logits` (B,C,h,w) are the teacher's after the corrections that the user handed in.
        """
        return None

    def correct(self, logits: Tensor, labels: Tensor, domain: Tensor, term: Term) -> Tensor:
        """The student's logits (B,C,H,W) as that term is to see them; "source" comes first, then "mix", then "masked".

        `labels` (B,H,W) are the classes taught, 255 for none and in rows that teach nothing; `domain` (B,1,H,W) bool is
        True on source pixels.
        """
        return logits

    def check_source_free(self) -> None:
        """Raise ConfigError where it cannot do without source images."""

    def terms(self, view: View) -> dict[str, Tensor]:
        """Further weighted loss terms by name."""
        return {}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Further parameters that the loop's optimiser moves."""
        return []

    def after_step(self, step: int) -> None:
        """After the optimiser and the teacher."""

    def report(self) -> dict[str, float]:
        """Numbers about the last step for the log."""
        return {}

    def temperatures(self, logits: Tensor, dense: Callable[[Tensor], Tensor]) -> Tensor | None:
        """What the teacher's logits (B,C,h,w) would be divided by, (B,1,H,W), or None. To look at only.

        `dense` enlarges maps (B,.,h,w) to where the temperatures are wanted.
        """
        return None

    def pictures(self, view: View) -> dict[str, Tensor]:
        """Further images (B,3,H,W) in [0,1] of a step, by name; to look at only."""
        return {}
