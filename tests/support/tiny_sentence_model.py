"""A BERT of two layers with random weights, as sentence-transformers saves one."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["a", "chair", "with", "four", "legs", "round", "table", "red", "lamp"]
"""What it knows."""


def save(folder: Path) -> Path:
    """Save it into a folder, and return that."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    return folder
