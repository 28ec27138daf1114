"""Owns the loop, inference and checkpoints."""
