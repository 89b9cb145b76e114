"""Texts made by rule or by the language model itself, for training."""
