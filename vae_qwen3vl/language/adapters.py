"""LoRA adapters on the language model's text layers, through peft. Knows nothing of 3D."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.errors import brief

logger = logging.getLogger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
WEIGHTS = "adapter_model.safetensors"
TARGETS = {"attention": _ATTENTION, "all": (*_ATTENTION, "gate_proj", "up_proj", "down_proj")}
"""Which linear maps of a text layer get an adapter."""


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'vae-qwen3vl[language]'") from error
    return peft


def add_lora(
    vl_model: nn.Module, r: int = 8, alpha: int = 32, dropout: float = 0.05, targets: str = "attention"
) -> nn.Module:
    """Return `vl_model` with trainable rank-`r` adapters on linear maps of its text layers (`TARGETS`).

    Raises:
        ValueError: the model has adapters already.
    """
    peft = _peft()
    if isinstance(vl_model, peft.PeftModel):
        raise ValueError("the language model already has LoRA adapters; load or add them only once")
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(TARGETS[targets]), task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(vl_model, config)


def read_adapter_config(folder: str | os.PathLike[str]) -> Any:
    """Return the peft configuration of a peft folder.

    Raises:
        ValueError: there is no adapter, or its configuration is not readable.
    """
    peft = _peft()
    if not (Path(folder) / WEIGHTS).is_file() or not (Path(folder) / "adapter_config.json").is_file():
        raise ValueError(f"no LoRA adapter in {folder}: expected adapter_config.json and {WEIGHTS}")
    try:
        return peft.PeftConfig.from_pretrained(os.fspath(folder))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/adapter_config.json is no adapter's configuration: {brief(error)}") from error


def load_lora(
    vl_model: nn.Module, folder: str | os.PathLike[str], trainable: bool = False, *, dropout: float | None = None
) -> nn.Module:
    """Return `vl_model` with the adapters of a peft folder (`lora_final/`); each tensor must find its place.

    Args:
        vl_model: the language model.
        folder: the adapters.
        trainable: whether they learn on.
        dropout: in front of them, instead of what their configuration says.

    Raises:
        ValueError: no adapter there, or its tensors are not exactly those the model asks for.
    """
    peft = _peft()
    if isinstance(vl_model, peft.PeftModel):
        raise ValueError("the language model already has LoRA adapters; load or add them only once")
    config = read_adapter_config(folder)
    saved, _ = read_safetensors(Path(folder) / WEIGHTS, "LoRA adapter")
    if dropout is not None:
        config.lora_dropout = dropout
    config.inference_mode = not trainable
    # The file names the model it was trained on; peft would warn that this one lies in another folder.
    config.base_model_name_or_path = None
    wrapped = peft.get_peft_model(vl_model, config)
    expected = {name: value.shape for name, value in peft.get_peft_model_state_dict(wrapped).items()}
    shapes = {name: value.shape for name, value in saved.items()}
    if expected != shapes:
        wrong = sorted(n for n in expected.keys() | shapes.keys() if expected.get(n) != shapes.get(n))
        raise ValueError(
            f"the LoRA adapter in {folder} doesn't fit this language model: {len(wrong)} tensors differ, "
            f"first {wrong[0]} (adapter {shapes.get(wrong[0])}, model {expected.get(wrong[0])})"
        )
    peft.set_peft_model_state_dict(wrapped, saved)
    untrained = all(not torch.any(value) for name, value in saved.items() if "lora_B" in name)
    if untrained:
        logger.warning("the LoRA adapter in %s is untrained: its B matrices are zero", folder)
    logger.info("loaded %d LoRA tensors of rank %d from %s", len(saved), config.r, folder)
    return wrapped


def merge_lora(vl_model: Any) -> Any:
    """Return the language model with its adapters, if there are any, added into its weights: it answers sooner."""
    return vl_model.merge_and_unload() if hasattr(vl_model, "peft_config") else vl_model


@contextlib.contextmanager
def casts_left_to_autocast(vl_model: nn.Module, autocast: bool) -> Iterator[None]:
    """Stop float32 adapters from widening activations that autocast would narrow again: the same, with less memory.

    Args:
        vl_model: the language model, with adapters or without.
        autocast: whether it runs under autocast; False changes nothing.
    """
    if not autocast or not hasattr(vl_model, "peft_config"):
        yield
        return
    _peft()
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(vl_model):
        yield


def save_lora(
    vl_model: nn.Module,
    folder: str | os.PathLike[str],
    base_name: str | None,
    *,
    dtype: torch.dtype | None = torch.bfloat16,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapters, if there are any, as a peft folder.

    Args:
        vl_model: the language model, with adapters or without.
        folder: made where missing.
        base_name: the language model's name, as the adapter's configuration says it.
        dtype: of the file's numbers; None keeps theirs.
        state: the language model's state dict, where a trainer has gathered it from several processes.
    """
    configs: Any = getattr(vl_model, "peft_config", None)
    if configs is None:
        return
    saved = _peft().get_peft_model_state_dict(vl_model, state_dict=None if state is None else dict(state))
    tensors = {name: value.detach().to("cpu", dtype or value.dtype).contiguous() for name, value in saved.items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(target / WEIGHTS, tensors)
    config = copy.copy(configs["default"])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    config.save_pretrained(os.fspath(target))
