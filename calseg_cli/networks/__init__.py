"""Owns the segmentation networks and how each is built by name."""
