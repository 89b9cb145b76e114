"""Sparse 3D tensors and the layers on them. Knows nothing of distance fields or codes."""
