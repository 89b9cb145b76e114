"""How well a tokenizer rebuilds objects."""
