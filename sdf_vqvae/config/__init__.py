"""Settings of tokenizers and of their training, as the files of `configs/vae` have them."""
