"""Owns what stages leave on disk for each other; the only place that knows HDF5."""
