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
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.language.adapted_rows import AdaptedLinear

logger = logging.getLogger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
WEIGHTS = "adapter_model.safetensors"
TARGETS = {"attention": _ATTENTION, "all": (*_ATTENTION, "gate_proj", "up_proj", "down_proj")}
"""Which linear maps of a text layer get an adapter."""
_OF_PLAIN = {"bias": "none", "init_lora_weights": True}
"""What the configuration of plain LoRA has to say where it says anything,"""
_SAID_OF_PLAIN = {
    *("base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "task_type"),
}
"""and what it may say; any other key that is not empty is peft's."""


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
    _check_shapes({n: value.shape for n, value in peft.get_peft_model_state_dict(wrapped).items()}, saved, folder)
    peft.set_peft_model_state_dict(wrapped, saved)
    _tell(saved, config.r, folder)
    return wrapped


def _check_shapes(expected: Mapping[str, torch.Size], saved: Mapping[str, Tensor], folder: object) -> None:
    """Raise a ValueError unless the tensors of an adapter are exactly those that the model asks for."""
    shapes = {name: value.shape for name, value in saved.items()}
    if expected != shapes:
        wrong = sorted(n for n in expected.keys() | shapes.keys() if expected.get(n) != shapes.get(n))
        raise ValueError(
            f"the LoRA adapter in {folder} doesn't fit this language model: {len(wrong)} tensors differ, "
            f"first {wrong[0]} (adapter {shapes.get(wrong[0])}, model {expected.get(wrong[0])})"
        )


def _tell(saved: Mapping[str, Tensor], rank: int, folder: object) -> None:
    """Log what was loaded."""
    if all(not torch.any(value) for name, value in saved.items() if "lora_B" in name):
        logger.warning("the LoRA adapter in %s is untrained: its B matrices are zero", folder)
    logger.info("loaded %d LoRA tensors of rank %d from %s", len(saved), rank, folder)


def merge_lora(vl_model: Any, *, keep_untouched: bool = False) -> Any:
    """Return the language model with its adapters, if there are any, added into its weights: it answers sooner.

    Args:
        vl_model: the language model, with adapters or without.
        keep_untouched: keep the weights from before beside them, for `adapted_rows.adapters_in`: memory of another
            copy of the adapted maps.
    """
    if not hasattr(vl_model, "peft_config"):
        return vl_model
    adapted = {name: module.base_layer for name, module in _adapted(vl_model)} if keep_untouched else {}
    if any(not _is_plain(module) for module in adapted.values()):
        logger.warning("adapters on quantised or spread maps stay at work in chats without an object, too")
        adapted = {}
    untouched = {name: module.weight.detach().clone() for name, module in adapted.items()}
    merged = vl_model.merge_and_unload()
    for name, weight in untouched.items():
        module = merged.get_submodule(name)
        with_adapter, module.weight = module.weight, nn.Parameter(weight, requires_grad=False)
        merged.set_submodule(name, AdaptedLinear(module, with_adapter.detach()))
    return merged


def _adapted(vl_model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the maps that peft has put adapters around, by their names without peft."""
    for name, module in vl_model.get_base_model().named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield name, module


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a linear map whose weight is here, and nothing else."""
    return type(module) is nn.Linear and not module.weight.is_meta and "forward" not in vars(module)


def load_merged(vl_model: nn.Module, folder: str | os.PathLike[str], *, keep_untouched: bool = False) -> Any:
    """Return what `merge_lora` makes of `load_lora`.

    Plain LoRA is added here, to the same bit; peft, whose import and modules take longer than the sums, has the rest.
    """
    plain = None if hasattr(vl_model, "peft_config") else _plain_lora(folder)
    if plain is None:
        return merge_lora(load_lora(vl_model, folder), keep_untouched=keep_untouched)
    rank, scale, targets = plain
    maps = {name: module for name, module in vl_model.named_modules() if name.rpartition(".")[2] in targets}
    if not maps or not all(_is_plain(module) for module in maps.values()):
        return merge_lora(load_lora(vl_model, folder), keep_untouched=keep_untouched)
    saved, _ = read_safetensors(Path(folder) / WEIGHTS, "LoRA adapter")
    pairs = {name: [f"base_model.model.{name}.lora_{part}.weight" for part in "AB"] for name in maps}
    expected: dict[str, torch.Size] = {}
    for name, module in maps.items():
        shapes = torch.Size([rank, module.in_features]), torch.Size([module.out_features, rank])
        expected |= zip(pairs[name], shapes, strict=True)
    _check_shapes(expected, saved, folder)
    with torch.no_grad():
        for name, module in maps.items():
            a, b = (saved[part].to(module.weight.device, torch.float32) for part in pairs[name])  # [r, in], [out, r]
            added = b @ a * scale  # [out, in]
            if keep_untouched:
                weight = (module.weight + added).to(module.weight.dtype)
                vl_model.set_submodule(name, AdaptedLinear(module, weight))
            else:
                module.weight += added
    _tell(saved, rank, folder)
    return vl_model


def _plain_lora(folder: str | os.PathLike[str]) -> tuple[int, float, set[str]] | None:
    """Return rank, scale and names of the adapted maps of a peft folder; None if it may hold more than plain LoRA."""
    try:
        config = parse_json((Path(folder) / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return None  # which peft says in more words
    if not isinstance(config, dict) or not (Path(folder) / WEIGHTS).is_file():
        return None
    said = {key: value for key, value in config.items() if value}
    kind, rank, alpha, targets = (said.pop(key, None) for key in ("peft_type", "r", "lora_alpha", "target_modules"))
    if kind != "LORA" or type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        return None
    if not isinstance(targets, list) or not all(type(n) is str and "." not in n for n in targets):
        return None
    if any(key not in _SAID_OF_PLAIN and value != _OF_PLAIN.get(key) for key, value in said.items()):
        return None
    return rank, alpha / rank, set(targets)


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
