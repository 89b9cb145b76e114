"""The text model of a Qwen2-VL or Qwen3-VL as the plain model that computes the same, as engines know it.

Where the three M-RoPE axes agree, Qwen2-VL's is a Qwen2 and Qwen3-VL's a Qwen3; a Qwen2 without biases is a Llama.
Tensors keep their values and change their names. Knows transformers; knows nothing of shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vae_qwen3vl.language.backbone import without_wrapper

_FAMILIES = {"qwen2_vl": "Qwen2", "qwen3_vl": "Qwen3"}
"""The plain family of each `model_type` (VL_CLASSES has the same keys)."""
_WITHOUT_BIASES = {"Qwen2": "Llama"}
"""Not only smaller: a Qwen2's folder is read with Qwen's way of splitting text, whatever tokenizer lies in it."""
_OF_IMAGES = {"mrope_section", "mrope_interleaved"}
_ITS_OWN = {"model_type", "architectures", "transformers_version"}


def plain_config(vl_config: Any, family: str) -> Any:
    """Return the configuration of the plain model of a family that computes what a VL model's text model does."""
    import transformers

    text = vl_config.get_text_config()
    plain = getattr(transformers, f"{family}Config")
    known = plain().to_dict().keys() - _ITS_OWN
    settings = {name: value for name, value in text.to_dict().items() if name in known}
    settings["rope_parameters"] = {
        name: value for name, value in text.rope_parameters.items() if name not in _OF_IMAGES
    }
    return plain(**settings | {"tie_word_embeddings": bool(vl_config.tie_word_embeddings)})


def plain_state(vl_model: Any) -> tuple[str, dict[str, Tensor]]:
    """Return the family of a VL model's text model, and its tensors under their plain names, without copies."""
    base = without_wrapper(vl_model)
    state = {
        name.replace("model.language_model.", "model.", 1): value
        for name, value in base.state_dict().items()
        if not name.startswith("model.visual.")
    }
    family = _FAMILIES[base.config.model_type]
    biases = [name for name in state if name.endswith("_proj.bias")]
    if family in _WITHOUT_BIASES and not any(bool(state[name].any()) for name in biases):
        return _WITHOUT_BIASES[family], {name: value for name, value in state.items() if name not in biases}
    return family, state


def plain_model(vl_model: Any, new_rows: Mapping[int, Tensor] | None = None) -> Any:
    """Return the text model of a VL model as a plain one; what it does not change, both share.

    Args:
        vl_model: adapters merged.
        new_rows: vectors `[H]` of vocabulary entries that are new, by id, behind the text's. They are read and never
            said: their output rows are the mean of the text's, so that the logit of each is the mean of the text's
            logits, which is never above the largest.
    """
    import transformers
    from accelerate import init_empty_weights

    family, state = plain_state(vl_model)
    config = plain_config(vl_model.config, family)
    if new_rows:
        table, head = state["model.embed_tokens.weight"], state["lm_head.weight"]  # [V, H]
        ids = torch.tensor(list(new_rows), device=table.device)
        never = head[: min(new_rows)].double().mean(0).to(head)  # [H]
        state["model.embed_tokens.weight"] = _with_rows(table, ids, torch.stack(list(new_rows.values())).to(table))
        state["lm_head.weight"] = _with_rows(head, ids, never.expand(len(ids), -1))
        config.vocab_size, config.tie_word_embeddings = len(state["lm_head.weight"]), False
    elif config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()  # where they are: two parameters were assigned
    model.generation_config = vl_model.generation_config
    return model.eval()


def _with_rows(table: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Return a copy of `table [V, H]` in which `rows [n, H]` stand at `ids [n]`, longer where they lie behind it."""
    longer = table.new_zeros((max(len(table), int(ids.max()) + 1), table.shape[1]))
    longer[: len(table)] = table
    return longer.index_copy_(0, ids, rows)
