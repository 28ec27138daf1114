"""Owns the way from folders of images and labels to batches."""
