"""Vectors to codes: one class for each kind of codebook, and the table that a config's `quantizer` is read by."""
