"""Torch modules and tensor functions; they take numbers, never a configuration or a path."""
