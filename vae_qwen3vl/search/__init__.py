"""A folder of shapes as an index that words and shapes search: vectors of shapes, where they lie, who is near."""

from vae_qwen3vl.search.shape_index import Hit, ShapeIndex

__all__ = ["Hit", "ShapeIndex"]
