"""Owns the section of adaptation: which method, on which images, and one section of options a method."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.adapt_steps import AdaptSteps, Weight
from calseg_cli.config.section import Section, key, section
from calseg_cli.config.self_training import BLDA, DACal, SelfTraining
from calseg_cli.config.training import Augment
from calseg_cli.config.values import Bool, DomainRole, Float, Int, Positive, Probability, Split, Text

Portion = Annotated[Float, Field(gt=0, le=1)]


class AdaBN(Section):
    """AdaBN: batch-norm statistics re-estimated on the target (Li et al. 2016, arXiv 1603.04779)."""

    batch_size: Int = key(4, "Images normalised together while statistics are measured; at least 1.", ge=1)
    passes: Int = key(1, "How often all images are seen; at least 1.", ge=1)
    shuffle: Bool = key(True, "Mix the images' order, so that a batch is not one street.")
    momentum: Float = key(1.0, "1 replaces the source's statistics, less mixes them; above 0, at most 1.", gt=0, le=1)


class Tent(AdaptSteps):
    """TENT: entropy minimised through batch norm's scales and shifts (Wang et al. 2021, arXiv 2006.10726)."""

    steps: Int = key(120, "Optimiser steps; 1 to 10000000.", ge=1, le=10_000_000)
    lr: Positive = key(1e-4, "Learning rate; above 0, at most 1000.", le=1000)
    augment: Augment = section(Augment, "How target images are varied.")


class Rounds(AdaptSteps):
    """Self-training in rounds, each on pseudo-labels made once at its start."""

    rounds: Int = key(1, "Rounds of labelling and training; at least 1.", ge=1, le=100)
    steps: Int = key(120, "Optimiser steps a round; 1 to 10000000.", ge=1, le=10_000_000)
    lr: Positive = key(1e-4, "Encoder's learning rate at its highest; above 0, at most 1000.", le=1000)
    head_lr: Positive = key(1e-4, "Head's learning rate at its highest; above 0, at most 1000.", le=1000)
    train: Literal["all", "head", "batch-norm"] = key("all", "What trains: all, head, or batch-norm's scales.")
    warm_up: Literal["all", "value-net", "none"] = key(
        "all", "Batch statistics measured on the target before the first round: all, value-net (its own), none."
    )
    portion: Portion = key(
        0.3, "Most confident share of each class's pixels that is believed in round 1; above 0, at most 1."
    )
    portion_step: Probability = key(0.05, "The share grows by this every round, 0 to 1.")
    local_portion: Probability = key(0.0, "Also believe each image's own most confident share, 0 to 1; 0 for none.")
    average: Portion = key(1.0, "Share of the trained weights in a round's result, the rest its start's; above 0.")
    choose: Literal["entropy", "expected-error", "last"] = key(
        "entropy", "Which round's network is kept: of lowest entropy, of lowest expected error, or the last."
    )
    pictures: Int = key(4, "Images of each round whose pseudo-labels are drawn; 0 for none.", ge=0)


class CBST(Rounds):
    """Class-balanced self-training, plain (Zou et al. 2018, arXiv 1810.07911): the baseline of calsfda."""


class CalSFDA(Rounds):
    """Cal-SFDA: self-training without the source, guided by expected calibration errors (arXiv 2308.03003)."""

    guidance: Literal["value-net", "none"] = key(
        "value-net", "Who expects each image's calibration error e, by which confidence is scaled: value-net or none."
    )
    trust: Probability | None = key(
        None,
        "How far e differs by image: 1 as the value net says, 0 not at all; null: as far as it proved right.",
    )
    ce_weight: Weight = key(0.1, "Weight of the cross-entropy in the symmetric one; at least 0.")
    rce_weight: Weight = key(1.0, "Weight of the reverse cross-entropy; at least 0.")
    negative_weight: Weight = key(1.0, "Weight of negative learning; at least 0.")
    entropy_weight: Weight = key(0.01, "Weight of the entropy term; at least 0.")
    entropy_power: Positive = key(2.0, "Power of the squared normalised entropy in its term; above 0.")
    class_weights: Literal["thresholds", "none"] = key(
        "thresholds", "Weights of classes in the cross-entropy: from their thresholds, or none."
    )
    settle: Bool = key(
        True, "Divide the result's logits so that its mean confidence is 1 - e times the un-adapted network's."
    )
    softness: Literal["none", "smoothing", "temperature"] = key(
        "none", "What a believed pixel is taught: its class; that with probability 1 - e; the softened probabilities."
    )
    anchor: Weight = key(0.0, "Weight of keeping each image's mean confidence where e says it is right; at least 0.")


class Adapt(Section):
    """How a trained network is moved to the target, whose labels are never read."""

    method: Text = key("adabn", "Method: adabn, tent, cbst, calsfda, self-training, dacal, blda; or dacal+blda.")
    domain: DomainRole = key("target", "Whose images to adapt to: source or target.")
    split: Split = key("train", "Split to adapt on: train, val or test.")
    adabn: AdaBN = section(AdaBN, "Options of adabn.")
    tent: Tent = section(Tent, "Options of tent.")
    cbst: CBST = section(CBST, "Options of cbst.")
    calsfda: CalSFDA = section(CalSFDA, "Options of calsfda.")
    self_training: SelfTraining = section(SelfTraining, "Options of self-training; dacal and blda build on it.")
    dacal: DACal = section(DACal, "What dacal adds to self-training.")
    blda: BLDA = section(BLDA, "What blda adds to self-training.")
