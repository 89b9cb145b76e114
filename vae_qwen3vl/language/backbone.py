"""The language model itself: which class opens a checkpoint, and the little the 3D branch asks of it.

Knows transformers' public interface; knows nothing of 3D.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

VL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
"""The class of each supported `model_type`."""

_HUB_ARGUMENTS = ("revision", "cache_dir", "local_files_only", "token")


def load_vl_model(name_or_path: str, dtype: torch.dtype | str | None = None, **kwargs: Any) -> Any:
    """Load a Qwen2-VL or Qwen3-VL checkpoint by the class that its `model_type` names.

    Args:
        name_or_path: folder or Hub id.
        dtype: of the weights; float32 if None.
        **kwargs: for `from_pretrained`.

    Raises:
        ValueError: another kind of model.
    """
    import transformers

    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    config = transformers.AutoConfig.from_pretrained(name_or_path, **hub)
    check_model_type(config.model_type, name_or_path)
    vl_class = getattr(transformers, VL_CLASSES[config.model_type])
    return vl_class.from_pretrained(name_or_path, dtype=dtype or torch.float32, **kwargs)


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return in which dtype a language model answers soonest: bfloat16 where the device computes with it."""
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    computes = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if device.type == "cpu" and computes else torch.float32


def check_model_type(model_type: str, name: str) -> None:
    """Raise a ValueError that names the supported kinds unless `model_type` is one of them."""
    if model_type not in VL_CLASSES:
        supported = " and ".join(sorted(VL_CLASSES))
        raise ValueError(f"{name} is a {model_type!r} model; the 3D branch works on {supported} checkpoints")


def without_wrapper(vl_model: Any) -> Any:
    """Return the language model itself, in which adapters stay at work, where peft wraps it."""
    return vl_model.get_base_model() if hasattr(vl_model, "get_base_model") else vl_model


def text_layers(vl_model: Any) -> Iterable[nn.Module]:
    """Return the decoder layers of the text model, first to last."""
    return without_wrapper(vl_model).model.language_model.layers


def fuse_norms(vl_model: Any) -> None:
    """Replace the text model's norms in place by PyTorch's own, one kernel on a GPU instead of eight.

    Weights and their names stay what they are. In bfloat16 the weight is multiplied before the result is rounded, not
    after.
    """
    text_model = without_wrapper(vl_model).model.language_model
    norms = [(name, module) for name, module in text_model.named_modules() if hasattr(module, "variance_epsilon")]
    for name, module in norms:
        fused = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, device="meta")
        fused.weight = module.weight
        text_model.set_submodule(name, fused)


def compile_layers(vl_model: Any, backend: str = "inductor") -> None:
    """Compile every text layer in place, for any batch and length; names and weights stay what they are."""
    for layer in text_layers(vl_model):
        layer.compile(dynamic=True, backend=backend)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled layers run as they are written.

    For what a run does now and then, such as validation: each mode of gradients would be compiled anew, and after
    eight versions of a layer PyTorch compiles no more.
    """
    stance = getattr(torch.compiler, "set_stance", None)  # PyTorch 2.6
    return contextlib.nullcontext() if stance is None else stance("force_eager")


def name_cache(vl_model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` with the key-value cache, if there is one, under the name that this transformers gives it.

    transformers 5.24 renamed `past_key_values` to `cache`; callers may say either.
    """
    taken = inspect.signature(without_wrapper(vl_model).forward).parameters
    name = "cache" if "cache" in taken else "past_key_values"
    return {name if key in ("cache", "past_key_values") else key: value for key, value in arguments.items()}


def kept_cache(out: Any) -> Any:
    """Return the key-value cache of an output of the language model."""
    return out["cache"] if "cache" in out else out["past_key_values"]


def embedding_table(vl_model: Any) -> Tensor:
    """Return the text embeddings `[V, H]`."""
    return vl_model.get_input_embeddings().weight


def embedding_rms(table: Tensor, rows_at_once: int = 8192) -> float:
    """Return the root mean square of an embedding table `[V, H]`, in float32 pieces."""
    starts = range(0, len(table), rows_at_once)
    pieces = (table.detach()[start : start + rows_at_once].float() for start in starts)
    return (sum(piece.square().sum().item() for piece in pieces) / table.numel()) ** 0.5


def image_text_positions(
    vl_model: Any,
    input_ids: Tensor,  # [B, S]
    attention_mask: Tensor,  # [B, S]
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    mm_token_type_ids: Tensor | None,
) -> Tensor:  # [3, B, S]
    """Return the model's own M-RoPE positions of text, images and videos.

    Any id that is no image or video token counts as text. Without `mm_token_type_ids` they are found from the
    model's image and video token ids.
    """
    base = without_wrapper(vl_model)
    if mm_token_type_ids is None:
        image, video = input_ids == base.config.image_token_id, input_ids == base.config.video_token_id
        mm_token_type_ids = image.int() + 2 * video.int()
    positions, _ = base.model.get_rope_index(
        input_ids,
        mm_token_type_ids=mm_token_type_ids.to(input_ids.device),
        image_grid_thw=None if image_grid_thw is None else image_grid_thw.to(input_ids.device),
        video_grid_thw=None if video_grid_thw is None else video_grid_thw.to(input_ids.device),
        attention_mask=attention_mask.long(),
    )
    return positions
