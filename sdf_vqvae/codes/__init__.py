"""Discrete codes of objects: one object through the tokenizer, files of codes, datasets of them."""
