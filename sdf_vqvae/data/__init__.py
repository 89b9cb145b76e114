"""Where objects come from: files, packs, tables with captions, folders of fields."""

from typing import Literal, get_args

Format = Literal["trellis500k", "custom", "folder", "pack"]
FORMATS: tuple[str, ...] = get_args(Format)
"""Kinds of folders of meshes."""
