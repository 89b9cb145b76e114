"""Sparse distance fields: what their numbers mean, their file, their surface."""
