"""Owns the sections of self-training on mixed images: the frame's, which several methods read, and theirs."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.adapt_steps import AdaptSteps, Weight
from calseg_cli.config.section import Section, key, section
from calseg_cli.config.training import Augment
from calseg_cli.config.values import Bool, ClassWeights, Float, Int, Location, Positive, Probability, Range, Text

_FRAME = "self_training"
_PLUGGED = ("dacal", "blda")
Decay = Annotated[Float, Field(ge=0, lt=1)]


class WeakAugment(Augment):
    """How source and target images are varied before they are mixed: mirrored, and no more unless asked."""

    color: Probability = key(0.0, "Probability of jittering brightness, contrast, saturation and hue, 0 to 1.")


class StrongAugment(Section):
    """How mixed images are varied besides, each by itself; the teacher never sees this (DACS)."""

    color: Probability = key(0.8, "Probability of jittering brightness, contrast, saturation and hue, 0 to 1.")
    color_strength: Probability = key(0.2, "Strength of the colour jitter, 0 to 1.")
    blur: Probability = key(0.5, "Probability of a Gaussian blur, 0 to 1.")
    blur_sigma: Range = key((0.15, 1.15), "Standard deviation of the blur [smallest, largest] in pixels.")


class SelfTraining(AdaptSteps):
    """Self-training with a mean teacher on images mixed of both domains: DACS, DAFormer, MIC."""

    base: Literal["dacs", "daformer", "mic"] = key(
        "dacs", "dacs; daformer: and rare classes, feature distance; mic: and masked target images."
    )
    source_free: Bool = key(
        False, "Without source images: target images are mixed with each other. Not with daformer, nor for dacal."
    )
    labels: Literal["hard", "soft", "sampled"] = key(
        "hard", "What target pixels are taught: the teacher's class, its probabilities, or a class drawn from them."
    )
    steps: Int = key(300, "Optimiser steps; 1 to 10000000.", ge=1, le=10_000_000)
    lr: Positive = key(1e-4, "Encoder's learning rate at its highest; above 0, at most 1000.", le=1000)
    head_lr: Positive = key(1e-3, "Head's learning rate at its highest; above 0, at most 1000.", le=1000)
    ema: Decay = key(0.99, "Decay of the teacher's moving average a step, 0 to below 1.")
    keep: Literal["student", "teacher"] = key("student", "Which of the two is the result: student or teacher.")
    quality: Literal["batch", "image", "one"] = key(
        "batch", "Weight of target pixels: share of sure ones in the batch (DACS), in each image, or one."
    )
    threshold: Probability = key(0.968, "Probability from which the teacher is sure of a pixel, 0 to 1.")
    prototypes: Literal["off", "online"] = key(
        "off", "online: pseudo-labels by prototypes counted as it trains, by section prototypes (prior 0: 1000)."
    )
    threshold_labels: Bool = key(False, "Leave out pixels below the threshold in place of weighting all by quality.")
    ignore_top: Int = key(0, "Rows at a target image's top that teach nothing; at least 0.", ge=0)
    ignore_bottom: Int = key(0, "Rows at a target image's bottom that teach nothing; at least 0.", ge=0)
    hard_steps: Int = key(0, "Steps at the start that teach classes whatever labels says; at least 0.", ge=0)
    source_weight: Weight = key(1.0, "Weight of the cross-entropy on source images; at least 0.")
    class_weights: ClassWeights | None = key(
        None, "Weights of the classes on source pixels, as pretrain.class_weights has them; null: the same as there."
    )
    mix_weight: Weight = key(1.0, "Weight of the cross-entropy on mixed images; at least 0.")
    statistics: Literal["batch", "running", "shared"] = key(
        "batch", "Batch norm: by the batch, measured again at the end; running, without the source; shared by all."
    )
    warm_up: Bool = key(True, "Measure batch-norm statistics on the target before the first step, as adabn does.")
    settle: Bool = key(
        False, "Divide the result's logits at the end by one temperature, found as calibrate's dacal does."
    )
    held_out: Literal["val", "fold"] = key(
        "val", "Labelled source images kept from training, where a method needs some: split val, or every 8th of train."
    )
    feature_weight: Weight = key(0.005, "daformer, mic: weight of the feature distance; at least 0.")
    feature_ratio: Probability = key(0.75, "Share of a feature's pixels that must show one class, 0 to 1.")
    feature_classes: tuple[Text, ...] | None = key(None, "Classes whose features are held; null: all.")
    rare_temperature: Positive = key(0.01, "daformer, mic: temperature of rare-class sampling; above 0.")
    rare_min_pixels: Int | None = key(
        None, "Pixels that show a class in an image; at least 1, null: 3000 of 512x512, as much of the input.", ge=1
    )
    mask_block: Int | None = key(None, "mic: side of a masked block in pixels; null: an eighth of the height.", ge=1)
    mask_ratio: Probability = key(0.7, "mic: share of blocks that are masked, 0 to 1.")
    mask_weight: Weight = key(1.0, "mic: weight of the masked images; at least 0.")
    masked_labels: Literal["hard", "same"] = key(
        "hard", "mic: what masked images are taught: the teacher's classes, or the same as mixed ones."
    )
    visualize: Int = key(0, "Target images of which pictures are drawn while it trains; 0 for none.", ge=0)
    visualize_every: Int | None = key(
        None, "Steps from picture to picture; null: at the end of warm-up, half way and at the end.", ge=1
    )
    oracle: Bool = key(False, "For study: curves by labels of the target. They change nothing; the result is stamped.")
    oracle_every: Int | None = key(None, "Steps from one point of them to the next; null: a sixth of steps.", ge=1)
    oracle_split: Literal["val", "test"] | None = key(
        None, "The target's split that they are measured on: val or test; null: val, or test where there is no val."
    )
    oracle_images: Int = key(64, "Most images that they are measured on, the first ones; at least 1.", ge=1)
    strong: StrongAugment = section(StrongAugment, "How mixed images are varied.")
    augment: WeakAugment = section(WeakAugment, "How images are varied before they are mixed.")


class DACal(Section):
    """DA-Cal: pseudo-labels softened by a temperature network that learns beside the student (arXiv 2602.20860)."""

    warm_up: Int = key(60, "Steps of plain self-training before the temperature network is used.", ge=0)
    route: Literal["solved", "last-layer", "network"] = key(
        "solved", "What the student is thought to learn: its last layer to the end; one step of it; one step of all."
    )
    outer: Literal["held-out", "held-out+hard", "source", "source+hard"] = key(
        "held-out", "Whose labels judge: of source images kept from training, or trained on; with the teacher's own."
    )
    mask: Literal["complementary", "same", "own"] = key(
        "complementary", "Where the judging mix shows its source: where the student's mix does not; does; by itself."
    )
    strong: Bool = key(False, "Vary the judging mix as strongly as the student's.")
    interval: Int = key(1, "Steps from one step of the temperature network to the next; at least 1.", ge=1)
    ridge: Weight = key(5e-3, "solved: how strongly the last layer is held where it is; at least 0.")
    step_size: Positive = key(0.3, "last-layer, network: size of the one step; above 0.")
    bound: Annotated[Float, Field(gt=1, le=100)] = key(3.0, "Highest temperature, the lowest is 1 over it; above 1.")
    width: Int = key(32, "Channels of the temperature network; 0 for one temperature for all pixels.", ge=0, le=1024)
    inputs: Literal["log-probs", "centred"] = key("log-probs", "What it reads: log-probs, or centred logits.")
    lr: Positive = key(1e-4, "Learning rate of its convolutions; above 0.")
    level_lr: Positive = key(2e-2, "Learning rate of the one number that is added for all pixels; above 0.")
    rule: Literal["unit", "clip", "none"] = key("unit", "Its gradient is scaled to norm 1; cut at norm 1; or left.")
    average: Decay = key(0.97, "Decay a step of the mean of its weights, which is what is used; 0 to below 1.")
    hard_share: Probability = key(0.0, "Share of a pixel's lesson that is the teacher's class; 0 to 1.")
    hard_weight: Weight = key(0.0, "Weight of a second mix, of what the first left out, with hard labels; at least 0.")
    alarms: Bool = key(True, "Teach hard labels while T sticks to its bounds, the quality has halved or classes drift.")


class BLDA(Section):
    """BLDA: classes are taught through logits that are moved away from anchors all share (arXiv 2512.06886)."""

    tau: Weight = key(0.1, "Strength of the offsets: 0.1 serves mean IoU, 1 mean accuracy; at least 0.")
    anchors: Location | None = key(
        None, "Statistics of the source's logits (logit-statistics), whose anchors hold all along; null: learned."
    )
    warm_up: Int = key(30, "Steps that gather the logits' distributions before offsets are used.", ge=0)
    components: Int = key(5, "Gaussians in each distribution; at least 1.", ge=1, le=64)
    em_steps: Int = key(3, "Steps of expectation maximisation a batch; at least 1.", ge=1, le=100)
    momentum: Decay = key(0.99, "What a distribution keeps of itself a batch; 0 to below 1.")
    min_pixels: Int = key(100, "Pixels of a class that a batch must have to count; at least 1.", ge=1)
    max_samples: Int = key(1024, "Pixels of each class that a batch's fit reads; at least 1.", ge=1)
    anchor_samples: Int = key(16384, "Pixels that a batch's fit of the anchors reads; at least 1.", ge=1)
    nodes: Int = key(256, "Nodes of each table of offsets; at least 2.", ge=2, le=65536)
    tail: Literal["hold", "clip"] = key(
        "hold", "Outliers keep the offset of the tail_quantile; or are moved to the anchor's (the authors' code)."
    )
    tail_quantile: Annotated[Float, Field(gt=0, lt=0.5)] = key(0.01, "Share of a cell's logits at each end that are.")
    density_weight: Weight = key(0.0, "Weight of a head that learns each pixel's place in its class; 0 for no head.")


def sections_of(method: str) -> tuple[str, ...]:
    """The sections of adapt that a method reads, its own first; the last one says how it is run.

    >>> sections_of("tent"), sections_of("self-training"), sections_of("dacal")
    (('tent',), ('self_training',), ('dacal', 'self_training'))
    """
    own = [part.replace("-", "_") for part in method.split("+")]
    if any(part in _PLUGGED for part in own):
        return (*[part for part in own if part != _FRAME], _FRAME)
    return tuple(own)


def on_frame(method: str) -> bool:
    """Whether a method is self-training or builds on it; these train on source images too."""
    return sections_of(method)[-1] == _FRAME
