"""Owns figures, pictures and the HTML page; never sees a tensor."""
