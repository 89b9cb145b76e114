"""A plain Llama, Qwen2 or Qwen3 checkpoint as one GGUF file, for llama.cpp and what is built on it.

Written with the library `gguf`, which knows names, types and quantization.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sdf_vqvae.utils.files import atomic_path
from sdf_vqvae.utils.progress import Progress

_ALWAYS_F32 = ("norm.weight", ".bias")
_BLOCKS = {"q8_0": 32}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the tokenizers of Qwen2 and Qwen3 split text."""


def write_gguf(model: Any, folder: str | os.PathLike[str], path: str | os.PathLike[str], kind: str = "f32") -> None:
    """Write a plain model with its tokenizer as a GGUF file, whole or not at all.

    Args:
        model: a LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM.
        folder: where its tokenizer is saved.
        path: file to write.
        kind: of the matrices, one of `export.GGUF_TYPES`; vectors stay float32.

    Raises:
        ValueError: llama.cpp can't compute what this model does, or splits text otherwise than its tokenizer.
    """
    import gguf

    config = model.config
    _check_config(config, kind)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, config.model_type)
        _add_settings(writer, config, kind)
        _add_vocabulary(writer, Path(folder), config.vocab_size)
        quantized = gguf.GGMLQuantizationType[kind.upper()]
        state = model.state_dict()
        with Progress(len(state), "gguf", "tensor") as progress:
            for name, value in state.items():
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                as_type = gguf.GGMLQuantizationType.F32 if name.endswith(_ALWAYS_F32) else quantized
                value = _as_llama_cpp_turns(name, value, config)
                data = gguf.quants.quantize(value.detach().float().cpu().numpy(), as_type)
                writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=as_type)
                progress.update()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check_config(config: Any, kind: str) -> None:
    """Raise a ValueError for settings that llama.cpp's qwen2 and qwen3 don't have."""
    rotary, layers = config.rope_parameters["rope_type"], set(getattr(config, "layer_types", ["full_attention"]))
    biases = getattr(config, "attention_bias", False)  # those of Qwen2 are always there
    if rotary != "default" or layers != {"full_attention"} or biases:
        raise ValueError(
            "GGUF is written for plain rotary positions, full attention and no biases but Qwen2's; this model "
            f"has rope_type {rotary}, layers of {', '.join(sorted(layers))}, attention_bias {biases}"
        )
    block = _BLOCKS.get(kind, 1)
    if config.hidden_size % block or config.intermediate_size % block:
        raise ValueError(
            f"{kind} takes numbers in blocks of {block}, which the widths {config.hidden_size} and "
            f"{config.intermediate_size} are no multiples of: take f16"
        )


def _as_llama_cpp_turns(name: str, value: Tensor, config: Any) -> Tensor:
    """Return a tensor as llama.cpp has it: of a Llama it turns neighboring rows of a head, not its two halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if config.model_type != "llama" or heads is None:
        return value
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _add_settings(writer: Any, config: Any, kind: str) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    import gguf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    added = tokenizer.added_tokens_decoder
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
        if number in added:
            types[number] = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(json.loads(tokenizer.backend_tokenizer.to_str())))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token["bos"] = False  # chat templates write what stands in front
    special.add_to_gguf(writer, quiet=True)


def _splitting(backend: Any) -> str:
    """Return llama.cpp's name of the way in which a byte-level BPE tokenizer splits text into words.

    Raises:
        ValueError: it is of another kind.
    """
    if backend["model"]["type"] == "BPE":
        way = backend["pre_tokenizer"]
        if way["type"] == "ByteLevel" and way["use_regex"] and not way["add_prefix_space"]:
            return "gpt-2"
        steps = way.get("pretokenizers", [])
        if [step["type"] for step in steps] == ["Split", "ByteLevel"] and steps[0]["pattern"] == {
            "Regex": QWEN_WORDS
        }:
            return "qwen2"
    raise ValueError(
        "GGUF is written for tokenizers that split text as GPT-2's or Qwen's do; this one is of another kind"
    )
