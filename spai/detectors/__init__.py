"""Model files of any kind of detector, behind one protocol."""
