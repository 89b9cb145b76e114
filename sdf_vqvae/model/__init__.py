"""The sparse VQ-VAE: encoder, decoder, and their checkpoints."""
