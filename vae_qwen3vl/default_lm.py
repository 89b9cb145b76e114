"""Which language model a program runs on; what stands behind this door is in `language.default_model`."""

from vae_qwen3vl.language.default_model import DEFAULT_LM, ensure_default_lm, resolve_vl_model

__all__ = ["DEFAULT_LM", "ensure_default_lm", "resolve_vl_model"]
