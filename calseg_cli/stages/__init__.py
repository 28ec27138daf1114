"""Owns the stages, one file each: the only place where configuration, files and tensors meet."""
