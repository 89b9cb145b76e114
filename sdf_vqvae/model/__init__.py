"""The sparse VQ-VAE: encoder, quantizer, decoder, and their checkpoints."""
