"""GGUF files hold the checkpoint: read back with the library, and run by transformers' own loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vae_qwen3vl.export.gguf_file import write_gguf


@pytest.fixture
def plain(branch, export):
    """An exported folder and its model."""
    folder = export(branch()).folder
    return folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def field(reader, name: str):
    return reader.fields[name].contents()


def test_tensors_settings_and_words_are_read_back(plain):
    import gguf

    folder, model = plain
    write_gguf(model, folder, folder / "model.gguf")
    reader = gguf.GGUFReader(folder / "model.gguf")
    kind = model.config.model_type
    assert field(reader, "general.architecture") == kind
    assert field(reader, f"{kind}.attention.head_count_kv") == 2
    assert field(reader, f"{kind}.attention.key_length") == 12
    assert field(reader, f"{kind}.rope.freq_base") == 10000
    assert len(reader.tensors) == len(model.state_dict())
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for found, expected in (
        ("token_embd", "model.embed_tokens"),
        ("output", "lm_head"),
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
    ):
        assert np.array_equal(tensors[f"{found}.weight"].data, model.state_dict()[f"{expected}.weight"].numpy())

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == model.config.vocab_size
    assert all(tokens[number] == token for token, number in tokenizer.get_vocab().items())
    of = dict(zip(tokens, types, strict=True))
    assert (of["<|code_31|>"], of["<|im_end|>"], of["<tool_call>"], of["Ġ"]) == (3, 3, 4, 1)
    assert field(reader, "tokenizer.ggml.pre") == ("qwen2" if kind == "qwen2" else "gpt-2")
    assert field(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert field(reader, "tokenizer.chat_template") == tokenizer.chat_template
    assert field(reader, "tokenizer.ggml.add_bos_token") is False


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-5), ("bf16", 0.2), ("f16", 0.02)])
def test_transformers_runs_the_file(plain, kind, tolerance, shape):
    folder, model = plain
    write_gguf(model, folder, folder / "model.gguf", kind)
    # Of a Qwen3 its loader takes heads of 128 numbers for granted.
    again = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", config=model.config, dtype=torch.float32
    ).eval()
    ids = torch.randint(7, model.config.vocab_size, (1, 60), generator=torch.Generator().manual_seed(0))
    difference = (again(ids).logits - model(ids).logits).abs().max()
    assert float(difference) <= tolerance
    assert kind == "f32" or float(difference) > 0


def test_eight_bits_are_a_quarter_of_the_size_and_near(tmp_path, tokenizer, make_vl):
    import gguf

    from vae_qwen3vl.export.plain_model import plain_model

    model = plain_model(make_vl("qwen2_vl", hidden=64))
    tokenizer.save_pretrained(tmp_path)
    for kind in ("f32", "q8_0"):
        write_gguf(model, tmp_path, tmp_path / f"{kind}.gguf", kind)
    (found,) = (t for t in gguf.GGUFReader(tmp_path / "q8_0.gguf").tensors if t.name == "token_embd.weight")
    back = gguf.quants.dequantize(found.data, found.tensor_type)
    expected = model.model.embed_tokens.weight.detach().numpy()
    assert np.abs(back - expected).max() < 0.01 * np.abs(expected).max()


def test_rotary_positions_that_are_scaled_are_refused(plain):
    folder, model = plain
    model.config.rope_parameters["rope_type"] = "yarn"
    with pytest.raises(ValueError, match="rope_type yarn"):
        write_gguf(model, folder, folder / "model.gguf")
    assert not (folder / "model.gguf").exists()


def test_widths_that_are_no_whole_blocks_are_refused(plain):
    folder, model = plain
    with pytest.raises(ValueError, match="blocks of 32"):
        write_gguf(model, folder, folder / "model.gguf", "q8_0")


def test_a_tokenizer_that_splits_text_in_a_way_without_a_name_is_refused(plain, family):
    from tokenizers import pre_tokenizers

    if family == "qwen2":
        pytest.skip("a Qwen2's folder is read with Qwen's way of splitting, whatever tokenizer lies in it")
    folder, model = plain
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="split text"):
        write_gguf(model, folder, folder / "model.gguf")
    assert not (folder / "model.gguf").exists()


def test_qwens_way_of_splitting_text_has_a_name(qwen_tokenizer):
    import json

    from vae_qwen3vl.export.gguf_file import _splitting

    assert _splitting(json.loads(qwen_tokenizer.backend_tokenizer.to_str())) == "qwen2"
