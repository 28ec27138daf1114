"""calseg: carry a segmentation model to an unlabelled domain, and trust its confidence there."""

__version__ = "0.1.0"
