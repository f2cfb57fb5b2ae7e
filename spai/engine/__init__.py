"""Loops: what runs, in which order, on how many processes."""
