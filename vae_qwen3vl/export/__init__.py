"""Checkpoints that serving engines run without this package: the text model, and how an object enters its prompt."""

OBJECTS = ("tokens", "prompt_embeds")
"""How objects enter: as words of the vocabulary, or as embeddings that a request brings."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
