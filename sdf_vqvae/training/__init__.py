"""Training of the tokenizer."""
