"""Meshes with captions to a dataset of fields."""
