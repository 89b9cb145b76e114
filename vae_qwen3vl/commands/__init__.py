"""The programs of the language branch, a module each, and `vae-qwen3vl`, which has them all."""
