"""Owns calseg.yaml as a whole: one frozen section a stage, and what must fit across them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from calseg_cli.config.calibrate import Calibrate
from calseg_cli.config.domain import Domain
from calseg_cli.config.logit_statistics import LogitStatisticsSection
from calseg_cli.config.methods import Adapt
from calseg_cli.config.prototypes import PrototypeSection
from calseg_cli.config.pseudo_label import PseudoLabel
from calseg_cli.config.section import Section, key, section
from calseg_cli.config.select import Select
from calseg_cli.config.training import Pretrain
from calseg_cli.config.valuenet import ValueNetSection
from calseg_cli.config.values import (
    Bool,
    Condition,
    Device,
    DomainRole,
    Float,
    FolderName,
    Int,
    Location,
    Positive,
    Size,
    Split,
    Text,
    wrong,
    wrong_together,
)

FINE_BINS = 300  # counts of single images are kept this fine; a coarser number of bins has to divide it


class Network(Section):
    """A network by name, its options, and its first weights."""

    name: Text = key("tiny", "tiny, efficientnet-lite0, deeplabv2, segformer, or package.module:callable.")
    init: Text = key("default", "Weights to start from: default, none, imagenet, or a file.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="The network's own options, such as {depth: 101}."
    )


class Predict(Section):
    """How images become logits."""

    domain: DomainRole = key("target", "Whose images: source or target.")
    split: Split = key("test", "Split: train, val or test.")
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = key((1.0,), "Average over these image scales.")
    flip: Bool = key(False, "Average with the mirrored image.")
    window: Size | None = key(
        None, "Larger images are seen by windows [height, width] of the input, in bounded memory; null: whole."
    )
    window_overlap: Float = key(0.333, "Share of a window that the next one sees again, 0 to below 1.", ge=0, lt=1)
    amp: Literal["off", "bf16", "fp16"] = key("off", "Mixed precision while it looks: off, bf16 or fp16.")
    logits_dtype: Literal["float16", "float32"] = key("float16", "How logits are stored: float16 or float32.")
    compression: Literal["none", "gzip", "zstd", "bitshuffle"] = key(
        "gzip", "How the artifact is packed: gzip, none, or with calseg[fast-io] zstd or bitshuffle."
    )
    png: Bool = key(False, "Also write label, overlay and confidence pictures.")
    max_items: Annotated[Int, Field(ge=1)] | None = key(None, "Only the first N images; null for all.")


class Evaluate(Section):
    """What is measured, and what the report shows."""

    domain: DomainRole = key("target", "Whose labelled images: source or target.")
    split: Split = key("test", "Split: train, val or test.")
    max_items: Annotated[Int, Field(ge=1)] | None = key(None, "Only the first N images; null for all.")
    bins: Int = key(15, f"Bins of the ECE, 1 to 100; a divisor of {FINE_BINS}.", ge=1, le=100)
    edges: Literal["right", "left"] = key("right", "right: bins are (low, high]; left: [low, high).")
    report: Literal["iou", "ece", "full", "bias"] = key(
        "full", "Table to print: iou, ece, full or bias; bias also counts logits, which takes longer."
    )
    classes: Annotated[tuple[Text, ...], Field(min_length=1)] | None = key(
        None, "Classes that means are over; null for all."
    )
    eval_classes: Literal[13, 16, 19] | None = key(None, "The same by preset: 13, 16 or 19 of the Cityscapes classes.")
    fail_if: tuple[Condition, ...] = key((), 'Exit with 7 if one of these holds, such as ["ece>0.1"].')
    intervals: Int = key(
        0, "Resamples of the images for 95 % intervals of the scores, 100 to 100000; 0 for none.", ge=0, le=100_000
    )
    preset: Literal["guo15", "calsfda", "lts", "torchmetrics", "netcal", "monai"] | None = key(
        None, "Also the ECE by the convention of guo15, calsfda, lts, torchmetrics, netcal or monai."
    )
    classwise: Bool = key(False, "Also the class-wise ECE, of every class's probability; takes about twice as long.")
    regions: tuple[Literal["fg-true", "fg-pred", "boundary"], ...] = key(
        (), "Measured apart: fg-true, fg-pred (true or predicted class is not the background), boundary (and interior)."
    )
    background: Text | None = key(None, "The class that is no foreground, for fg-true and fg-pred.")
    boundary_band: Int = key(2, "Boundary: so many pixels to the next pixel of another true class.", ge=1, le=1000)
    boundary_distance: Literal["chebyshev", "euclid"] = key("chebyshev", "Pixels in a square (chebyshev) or a disc.")
    boundary_void: Bool = key(False, "Whether the edge to pixels without a class is a boundary too.")
    examples: Int = key(3, "Example images in the report page; 0 for none.", ge=0)
    html: Bool = key(False, "Also write report.html, one self-contained page.")

    @field_validator("bins")
    @classmethod
    def _divides(cls, bins: int) -> int:
        if FINE_BINS % bins:
            allowed = [other for other in range(1, 101) if FINE_BINS % other == 0]
            near = [str(other) for other in sorted(sorted(allowed, key=lambda other: abs(other - bins))[:3])]
            raise wrong(f"must divide {FINE_BINS}, which {bins} does not; near it: {', '.join(near)}")
        return bins

    @model_validator(mode="after")
    def _one_choice_of_classes(self) -> Self:
        if self.classes is not None and self.eval_classes is not None:
            raise wrong_together([("eval_classes", "and evaluate.classes exclude each other")])
        return self

    @model_validator(mode="after")
    def _regions_fit(self) -> Self:
        if len(set(self.regions)) < len(self.regions):
            raise wrong_together([("regions", "names a region twice")])
        if self.background is None and {"fg-true", "fg-pred"} & set(self.regions):
            raise wrong_together([("background", "must name the class that is no foreground, for fg-true and fg-pred")])
        return self


class Config(Section):
    """Everything a run depends on. Paths are those to open: relative to where calseg runs, or absolute."""

    name: FolderName = key("run", "The run's name: its results go to RUNS/NAME.")
    runs: Location = key(Path("runs"), "Folder of all runs.")
    seed: Int = key(0, "Seed of everything random, 0 to 4294967295.", ge=0, le=2**32 - 1)
    device: Device = key("auto", "auto (CUDA where there is one), cpu, cuda, cuda:N or mps.")
    workers: Int = key(0, "Processes that read images; 0 reads in the main one.", ge=0, le=1024)
    threads: Annotated[Int, Field(ge=1, le=1024)] | None = key(None, "CPU threads of torch; null leaves it to torch.")
    deterministic: Bool = key(True, "Ask for kernels that give the same result each time.")
    compile: Bool = key(False, "Run networks through torch.compile: quicker once it has compiled, which takes long.")
    tensorboard: Bool = key(False, "Also log training as TensorBoard reads it; needs calseg[tracking].")
    source: Domain | None = key(None, "The labelled domain.")
    target: Domain | None = key(None, "The domain to carry the network to.")
    network: Network = section(Network, "Which network, and the weights it starts from.")
    pretrain: Pretrain = section(Pretrain, "Supervised training on the source.")
    select: Select = section(Select, "The choice of one checkpoint among several.")
    valuenet: ValueNetSection = section(ValueNetSection, "A net that expects an image's calibration error.")
    predict: Predict = section(Predict, "Logits as an artifact.")
    pseudo_label: PseudoLabel = section(PseudoLabel, "Labels from logits, where they are believed.")
    logit_statistics: LogitStatisticsSection = section(
        LogitStatisticsSection, "Statistics of logits by label and channel."
    )
    prototypes: PrototypeSection = section(PrototypeSection, "Labels by the nearest soft-label prototype.")
    calibrate: Calibrate = section(Calibrate, "Calibrators of a network's confidence.")
    adapt: Adapt = section(Adapt, "Adaptation to the unlabelled target.")
    evaluate: Evaluate = section(Evaluate, "Accuracy and calibration on labelled images.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = list(self._class_problems())
        if problems:
            raise wrong_together(problems)
        return self

    def _class_problems(self) -> Iterator[tuple[str, str]]:
        classes = self.source.classes if self.source is not None else None
        if classes is None:
            return
        for where, weights in (
            ("pretrain.class_weights", self.pretrain.class_weights),
            ("adapt.self_training.class_weights", self.adapt.self_training.class_weights),
        ):
            if isinstance(weights, tuple) and len(weights) != len(classes):
                yield where, f"has {len(weights)} numbers for the source's {len(classes)} classes"
        for name in self.evaluate.classes or ():
            if name not in classes:
                yield "evaluate.classes", f"names {name!r}, which is none of the source's classes: {', '.join(classes)}"
