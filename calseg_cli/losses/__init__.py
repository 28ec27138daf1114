"""Owns loss terms as pure functions."""
