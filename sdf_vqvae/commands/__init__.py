"""The programs of the tokenizer, a module each."""
