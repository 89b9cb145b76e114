"""Where objects come from: files, packs, tables with captions, folders of fields."""

FORMATS = ("trellis500k", "custom", "folder", "pack")
"""Kinds of folders of meshes."""
