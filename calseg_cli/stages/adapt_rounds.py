"""Owns adaptation in rounds: look at the target, label it, train on the labels, and keep the best of the candidates.

The stage's folder has one folder a round. `round-0` is the network before any weight moves (with the target's
statistics where it is warmed up); `round-N` holds what round N was taught (pseudo_labels.h5, overlays/) and what came
of it (network.safetensors). All are candidates; a stopped run goes on within its round.
"""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.data.pseudo_labelled import PseudoLabelledDataset
from calseg_cli.engine.checkpoint import read_checkpoint
from calseg_cli.errors import ArtifactError
from calseg_cli.methods import build_adaptation
from calseg_cli.methods.checkpoint_criteria import Outlook, collapse
from calseg_cli.methods.expected_confidence import divide_logits, softening_temperature
from calseg_cli.methods.round_self_training import RoundSelfTraining
from calseg_cli.stages.corrections import Loaded
from calseg_cli.stages.round_labels import draw_overlays, kept_share, read_beliefs, write_round_labels
from calseg_cli.stages.round_pass import RoundPass, look
from calseg_cli.stages.run_folder import NETWORK
from calseg_cli.stages.target_training import Setting, remeasure, train_on_target
from calseg_cli.stages.training import StageFolder
from calseg_cli.stages.value_nets import LoadedValueNet

LABELS = "pseudo_labels.h5"
_SCRATCH = "look.partial"
RULES = {
    "entropy": "of lowest entropy",
    "expected-error": "of lowest expected calibration error",
    "last": "the last that is sound",
}


@dataclass(frozen=True)
class Candidate:
    """One round's network as it looks on the images it was adapted to; no label is known to it.

    `expected_confidence` is (1 - e) times its mean confidence; `temperature` what its logits are to be divided by so
    that its mean confidence is what was expected of the un-adapted network.
    """

    round: int
    outlook: Outlook
    expected_error: float
    refused: str | None
    expected_confidence: float = nan
    temperature: float = 1.0

    def facts(self) -> dict[str, Any]:
        """As plain values, for the log."""
        return {
            "round": self.round,
            "entropy": self.outlook.entropy,
            "confidence": self.outlook.confidence,
            "expected_error": self.expected_error if isfinite(self.expected_error) else None,
            "class_shares": [float(share) for share in self.outlook.class_shares],
            "pixels": self.outlook.pixels,
            "neighbourhood": self.outlook.neighbourhood,
            "refused": self.refused,
            "expected_confidence": self.expected_confidence if isfinite(self.expected_confidence) else None,
            "temperature": self.temperature,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Candidate":
        """The candidate that a log or a resumable state tells of."""
        error, confidence = facts["expected_error"], facts["expected_confidence"]
        outlook = Outlook(
            facts["entropy"],
            facts["confidence"],
            facts["neighbourhood"],
            np.array(facts["class_shares"]),
            facts["pixels"],
        )
        return cls(
            facts["round"],
            outlook,
            nan if error is None else error,
            facts["refused"],
            nan if confidence is None else confidence,
            facts["temperature"],
        )


class Rounds:
    """One run of the method in its folder."""

    def __init__(
        self,
        setting: Setting,
        stage: StageFolder,
        method_options: dict[str, Any],
        *,
        guide: LoadedValueNet | None,
        corrections: Sequence[Loaded],
    ) -> None:
        self.setting, self.stage, self._method_options = setting, stage, method_options
        self._ranks = setting.ranks
        self._guide, self._corrections = guide, corrections
        self._network: nn.Module = setting.loaded.network
        self.candidates: list[Candidate] = []

    def run(self, *, resume: bool) -> Candidate:
        """All rounds, from where a stopped run was; the stage's network is the chosen candidate's."""
        state = self._ranks.share(self.stage.begin(resume=resume) if self._ranks.is_main else None)
        first = 0
        if state is None:
            self._begin()
        else:
            first = int(state["step"]) + 1
            self.candidates = [Candidate.from_facts(facts) for facts in state["candidates"]]
        with self._what_cannot_go_on(resumed=state is not None):
            self._rounds(first, resume=resume)
            chosen = choose(self.candidates, self.setting.options.choose)
            self._load(chosen.round)
        self._settle(chosen)
        if not self._ranks.is_main:
            return chosen
        self.setting.progress.note(f"kept: round {chosen.round} ({RULES[self.setting.options.choose]})")
        self.stage.log({"event": "chosen", "step": chosen.round, "by": self.setting.options.choose})
        scores = {name: value for name, value in chosen.facts().items() if name != "class_shares"}
        self.stage.finish(chosen.round, self._network, scores)
        return chosen

    def _rounds(self, first: int, *, resume: bool) -> None:
        for number in range(first, self.setting.options.rounds + 1):
            if number > 0:
                self._train(number, resume=resume and number == first)
            judged = self._ranks.share(self._ranks.main_does(partial(self._judge, number), self.setting.stop))
            assert judged is not None  # the main process's
            self.candidates, goes_on = judged
            if not goes_on:
                break

    @contextmanager
    def _what_cannot_go_on(self, *, resumed: bool) -> Iterator[None]:
        """A stopped run whose files are damaged or gone since: no other stage can write them again."""
        try:
            yield
        except ArtifactError as error:
            if not resumed:
                raise
            raise ArtifactError(
                f"this stopped run cannot go on: {error.message}", "start anew with --force, or another with --name"
            ) from error

    def folder(self, number: int) -> Path:
        """The folder of a round."""
        return self.stage.path / f"round-{number}"

    def _begin(self) -> None:
        if self._ranks.is_main:
            for old in self.stage.path.glob("round-*"):
                shutil.rmtree(old)
        if self.setting.options.warm_up == "all":
            remeasure(self.setting, "measuring the target's statistics")
        if self._ranks.is_main:
            self.stage.at(self.folder(0)).finish(0, self._network, None)
            self._save(-1)

    def _save(self, number: int) -> None:
        """From here a stopped run goes on: candidate `number` is judged, and the labels of the next round are whole."""
        facts = [candidate.facts() for candidate in self.candidates]
        self.stage.save(number, self._network, {"step": number, "candidates": facts})

    def _judge(self, number: int) -> tuple[list[Candidate], bool]:
        """Look at the candidate and label for the next round: all candidates, and whether there is such a round."""
        self._load(number)
        options, folder = self.setting.options, self.folder(number)
        warm = options.warm_up != "none"
        scratch = folder / _SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        seen = look(
            self.setting,
            scratch,
            guide=self._guide,
            trust=self._trust(),
            warm=warm,
            corrections=self._corrections,
        )
        candidate = self._candidate(number, seen)
        self.candidates = [*self.candidates[:number], candidate]
        self.stage.log({"event": "candidate", "step": number, **candidate.facts()})
        self._tell(candidate)
        goes_on = number < options.rounds and candidate.refused is None
        if goes_on:
            self._label(number + 1, seen)
            self._save(number)
        shutil.rmtree(scratch, ignore_errors=True)
        return self.candidates, goes_on

    def _trust(self) -> float:
        """How far the value net's answers for two images may lie apart: as far as it proved right, unless told."""
        if self._guide is None:
            return 1.0
        chosen = self.setting.options.trust
        return self._guide.skill if chosen is None else float(chosen)

    def _candidate(self, number: int, seen: RoundPass) -> Candidate:
        start = self.candidates[0].outlook if number else seen.outlook
        wanted = self.candidates[0].expected_confidence if number else seen.expected_confidence
        return Candidate(
            number,
            seen.outlook,
            seen.mean_expected_error,
            collapse(seen.outlook, start),
            seen.expected_confidence,
            softening_temperature(seen.sample.mean, wanted),
        )

    def _settle(self, chosen: Candidate) -> None:
        """Divide the result's logits for good, where asked for and possible."""
        if not getattr(self.setting.options, "settle", False) or chosen.temperature == 1:
            return
        if divide_logits(self._network, chosen.temperature):
            self.setting.progress.note(
                f"the result's logits are divided by {chosen.temperature:.3f}: surer than it is expected to be right"
            )
        else:
            self.setting.progress.note(
                f"the last layer of {self.setting.loaded.network.name} cannot be divided by {chosen.temperature:.3f}: "
                "the result is surer than it is expected to be right"
            )

    def _label(self, number: int, seen: RoundPass) -> None:
        options, folder = self.setting.options, self.folder(number)
        portion = min(1.0, options.portion + options.portion_step * (number - 1))
        network = self.folder(number - 1) / NETWORK
        write_round_labels(
            self.setting, seen, folder / LABELS, portion=portion, network=network, corrections=self._corrections
        )
        with open_artifact(folder / LABELS, "pseudo_labels") as labels:
            if options.pictures:
                draw_overlays(self.setting, labels, folder / "overlays", options.pictures)
            share = kept_share(labels)
        self.setting.progress.note(f"round {number}: {share:.1%} of the pixels are believed ({folder / LABELS})")

    def _train(self, number: int, *, resume: bool) -> None:
        folder = self.folder(number)
        if self._ranks.main_answers(lambda: resume and (folder / NETWORK).exists()):
            return
        self._load(number - 1)
        method = build_adaptation(self.setting.resolved.config.adapt.method, self._network, **self._method_options)
        assert isinstance(method, RoundSelfTraining)
        start = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        with open_artifact(folder / LABELS, "pseudo_labels") as labels:
            teacher = copy.deepcopy(self._network).requires_grad_(False) if method.wants_teacher else None
            method.believe(read_beliefs(labels), teacher)
            images = self.setting.images
            self._check_images(labels)
            dataset = PseudoLabelledDataset(images.items, images.layout, size=images.size, labels=labels)
            self.setting.progress.note(f"round {number}: {self.setting.options.steps} steps")
            train_on_target(
                self.setting,
                self.stage.at(folder),
                method,
                dataset,
                seed=self.setting.resolved.config.seed + number - 1,
                resume=resume,
                conclude=lambda: self._conclude(start),
            )
        self._network.requires_grad_(True)

    def _check_images(self, labels: Artifact) -> None:
        """Raise ArtifactError where an image is not the one that was labelled, perhaps before a stop."""
        for item in self.setting.images.items:
            if file_digest(item.image) != labels.image_digest(item.id):
                raise ArtifactError(f"{item.image} is not the image labelled in {labels.path}", "put it back")

    def _conclude(self, start: dict[str, Tensor]) -> None:
        average_with(self._network, start, self.setting.options.average)
        remeasure(self.setting, "measuring the statistics again")

    def _load(self, number: int) -> None:
        """Every candidate is used as it was written, so that a broken run and an unbroken one are the same."""
        self._network.load_state_dict(read_checkpoint(self.folder(number) / NETWORK).network)
        self._network.eval()

    def _tell(self, candidate: Candidate) -> None:
        told = f"round {candidate.round}: entropy {candidate.outlook.entropy:.4f}"
        told += f", confidence {candidate.outlook.confidence:.4f}"
        if isfinite(candidate.expected_error):
            told += f", expected ECE {candidate.expected_error:.4f} (trusted by image to {self._trust():.0%})"
        self.setting.progress.note(told + (f"; refused: {candidate.refused}" if candidate.refused else ""))


def choose(candidates: Sequence[Candidate], rule: str) -> Candidate:
    """The candidate to keep, of those not refused: the un-adapted one is always among them.

    "entropy": of lowest mean entropy; "expected-error": of lowest expected calibration error, entropy where no value
    net expects one; "last": the last. Of equals the earlier.
    """
    sound = [candidate for candidate in candidates if candidate.refused is None]
    if rule == "last":
        return sound[-1]
    if rule == "expected-error" and all(isfinite(candidate.expected_error) for candidate in sound):
        return min(sound, key=lambda candidate: candidate.expected_error)
    return min(sound, key=lambda candidate: candidate.outlook.entropy)


@torch.no_grad()
def average_with(network: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Move every parameter to `share` of itself and the rest of what it was in `start`; buffers stay."""
    if share == 1:
        return
    for name, parameter in network.named_parameters():
        parameter.lerp_(start[name].to(parameter.device), 1 - share)
