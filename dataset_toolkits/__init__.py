"""The two programs that make datasets, under the names of the documentation; what they do is in `sdf_vqvae`."""
