"""Words to codes: which cells of the latent grid are occupied, and which code stands in each.

Two masked transformers (`networks`), trained in `training.generator_trainer`, asked in `making`.
"""
