"""Owns the section of adaptation: which method, on which images, and one section of options a method."""

from calseg_cli.config.section import Section, key, section
from calseg_cli.config.values import Bool, DomainRole, Float, Int, Split, Text


class AdaBN(Section):
    """AdaBN: batch-norm statistics re-estimated on the target (Li et al. 2016, arXiv 1603.04779)."""

    batch_size: Int = key(4, "Images normalised together while statistics are measured; at least 1.", ge=1)
    passes: Int = key(1, "How often all images are seen; at least 1.", ge=1)
    shuffle: Bool = key(True, "Mix the images' order, so that a batch is not one street.")
    momentum: Float = key(1.0, "1 replaces the source's statistics, less mixes them; above 0, at most 1.", gt=0, le=1)


class Adapt(Section):
    """How a trained network is moved to the target, whose labels are never read."""

    method: Text = key("adabn", "Method: adabn.")
    domain: DomainRole = key("target", "Whose images to adapt to: source or target.")
    split: Split = key("train", "Split to adapt on: train, val or test.")
    adabn: AdaBN = section(AdaBN, "Options of adabn.")
