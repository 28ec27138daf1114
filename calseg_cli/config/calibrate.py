"""Owns the section of `calseg calibrate`: which calibrator is fitted, on which images, with which options."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import DomainRole, Float, Int, Positive, Probability, Split, wrong

Share = Annotated[Float, Field(gt=0.5, lt=1)]
Least = Annotated[Float, Field(ge=0)]
Rate = Annotated[Float, Field(gt=0, le=10)]


def _strength(value: Any) -> str | float:
    if value == "auto":
        return "auto"
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _STRONGEST:
        return float(value)
    raise wrong(f"must be auto or a number from 0 to {_STRONGEST}, not {value!r}")


_STRONGEST = 100
Strength = Annotated[
    Literal["auto"] | float,
    PlainValidator(_strength),
    WithJsonSchema({"anyOf": [{"enum": ["auto"]}, {"type": "number", "minimum": 0, "maximum": _STRONGEST}]}),
]


class Calibrate(Section):
    """How a calibrator of a network's logits is fitted."""

    method: Literal[
        "temperature", "vector", "local", "selective", "pseudocal", "meta", "dacal", "blda", "logit-adjustment"
    ] = key(
        "temperature",
        "Which calibrator: temperature, vector, local, selective, pseudocal, meta, dacal, blda or logit-adjustment.",
    )
    on: DomainRole | None = key(
        None,
        "Whose images: source, or target (an oracle, with labels); null: what the method needs, never target labels.",
    )
    split: Split | None = key(
        None,
        "Split: train, val or test; null: val of the source, test for an oracle, train where null means the target.",
    )
    max_items: Annotated[Int, Field(ge=1)] | None = key(None, "Only the first N images; null for all.")
    penalty: Least = key(1e-4, "vector: weight of the squared distance to factors 1 and offsets 0; not below 0.")
    mix: Share = key(0.65, "pseudocal: the first image's share of a mix; above 0.5, below 1.")
    miscoverage: Probability = key(0.05, "meta: share of rightly classified pixels that may be given up, 0 to 1.")
    target_accuracy: Probability | None = key(
        None, "meta: instead, the accuracy of the pixels that are kept, 0 to 1; null for miscoverage."
    )
    wrong_temperature: Positive | None = key(
        None, "selective: the temperature of pixels judged wrong; null fits it on them."
    )
    positive: Literal["softplus", "relu"] = key(
        "softplus", "local: what keeps T above 0: softplus, or relu as in the paper, which can reach 1e-8."
    )
    epochs: Annotated[Int, Field(ge=1)] = key(10, "local, selective: passes over the images in training.")
    lr: Rate = key(1e-3, "local, selective: learning rate of Adam; above 0, at most 10.")
    steps: Annotated[Int, Field(ge=1, le=1_000_000)] = key(
        120, "dacal: steps of the temperature network, whose other options are those of adapt.dacal; at least 1."
    )
    batch_size: Annotated[Int, Field(ge=1)] = key(4, "dacal: images of each domain a step; at least 1.")
    statistics: Literal["batch", "running"] = key(
        "batch", "dacal: batch norm of mixed images: by the batch at hand, or running, as the network predicts."
    )
    tau: Strength = key("auto", "blda, logit-adjustment: strength; auto tries 0 to 1 without a label of the target.")
    tau_for: Literal["miou", "macc"] = key("miou", "auto: which score is to be best, miou or macc (class accuracy).")
    tau_by: Literal["source", "expected"] = key(
        "source", "auto: who judges: labels of the source's val, or the probabilities expected on the target."
    )
    anchors: Literal["source", "target"] = key(
        "source", "blda: whose logits all classes are moved to: source by labels, target by predictions."
    )
    anchor_weights: Literal["pixels", "classes"] = key(
        "pixels", "blda: in the anchors each pixel counts alike, or each class."
    )
    cells: Literal["target", "source"] = key(
        "target", "blda: whose logits say where a class is: target by predictions, source by labels."
    )
    prior: Literal["source", "pseudo"] = key(
        "source", "logit-adjustment: how often classes occur: labels of source train, or predictions on the target."
    )
