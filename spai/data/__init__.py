"""Files and tensors; no model."""
