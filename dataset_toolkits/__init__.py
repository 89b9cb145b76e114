"""Datasets in: meshes, CT scans and captions to folders of distance fields."""
