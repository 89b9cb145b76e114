"""Puts the parts of a model into one folder."""

from __future__ import annotations

import os
from pathlib import Path

from sdf_vqvae.utils.progress import waiting
from vae_qwen3vl.language.default_model import DEFAULT_LM, default_lm_folder, resolve_vl_model
from vae_qwen3vl.pretrained.folder import CONFIG, Parts, local_folder, parts_of
from vae_qwen3vl.pretrained.modeling import ShapeVLForConditionalGeneration
from vae_qwen3vl.pretrained.processing import ShapeVLProcessor
from vae_qwen3vl.trained_parts import is_model_folder, parts_for


@waiting("packing the model")
def pack(
    output: str | os.PathLike[str],
    *,
    vl_model: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    vae_config: str | None = None,
    vae_ckpt: str | None = None,
    merge_adapter: bool = False,
    by_name: bool = False,
) -> None:
    """Write a model and its processor into a folder.

    Args:
        output: the folder: a new or empty one, or one that holds such a model, which is replaced.
        vl_model: a language model, as `load_describer` takes it; or a saved model or training run, whose parts are
            taken.
        projector: see `load_describer`.
        lora: see `load_describer`.
        vae_config: see `load_vae_from_config`; the tokenizer of shapes that the projector was trained with.
        vae_ckpt: its weights.
        merge_adapter: add the adapter into the language model's weights.
        by_name: write the language model's name instead of its weights, and no shipped tokenizer of shapes.

    Raises:
        ValueError: the parts do not belong together, or the folder holds something else.
        LanguageModelUnavailableError: the language model can't be had.
    """
    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and not is_model_folder(folder):
        raise ValueError(f"{folder} holds something else than a saved model: give a new folder")
    parts = _parts(vl_model, projector, lora, vae_config, vae_ckpt)
    if (parts.folder / CONFIG).is_file() and folder.absolute() == parts.folder.absolute():
        raise ValueError(f"{folder} is where the parts are read from: give another folder")
    processor = ShapeVLProcessor.from_parts(parts, device="cpu")
    model = ShapeVLForConditionalGeneration.from_parts(parts, merge_adapter=merge_adapter, plain_chats=False)
    model.save_pretrained(folder, language_model=not by_name)
    processor.save_pretrained(folder, vae=None if by_name else True)


def _parts(
    vl_model: str | os.PathLike[str] | None,
    projector: str | os.PathLike[str] | None,
    lora: str | os.PathLike[str] | None,
    vae_config: str | None,
    vae_ckpt: str | None,
) -> Parts:
    if vl_model is not None and is_model_folder(vl_model):
        if any(part is not None for part in (projector, lora, vae_config, vae_ckpt)):
            raise ValueError(
                f"{vl_model} has all parts of a model: leave --projector_ckpt, --lora_dir, --vae_config and "
                "--vae_ckpt out"
            )
        return parts_of(local_folder(vl_model))
    is_default = resolve_vl_model(vl_model) == default_lm_folder()
    projector, lora = parts_for(vl_model, is_default, projector, lora)
    if projector is None:
        raise ValueError("there is no projector to pack: give --projector_ckpt")
    return Parts(
        folder=Path(projector).parent,
        reference=DEFAULT_LM if is_default else os.fspath(vl_model or DEFAULT_LM),
        projector=Path(projector),
        lora=lora,
        vae_config=vae_config,
        vae_ckpt=vae_ckpt,
    )
