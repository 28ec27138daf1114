"""Owns scores: sums that add exactly, and what is read off them."""
