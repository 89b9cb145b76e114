"""A model that describes shapes, ready to use: language model, projector and adapter that belong together.

Knows which trained parts are shipped and for which language model. Building, merging and generating are
`model.py`'s.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.language.default_model import DEFAULT_LM, default_lm_folder, resolve_vl_model

if TYPE_CHECKING:
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

logger = logging.getLogger(__name__)

PROJECTOR_NAME = "projector.safetensors"
LORA_NAME = "lora"
"""Names of the shipped parts."""
PROJECTOR_FINAL = "projector_final.pt"
LORA_FINAL = "lora_final"
ARGUMENTS = "train_args.json"
"""Names of the parts in a run's folder, and of the settings that they were trained with."""
NO_LORA = "none"
"""Instead of an adapter's folder: none, even where one lies beside the projector."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model says about one object."""

    text: str
    prompt: str
    tokens_3d: int
    """3D tokens that the language model read, without the two markers."""


def shipped_weights() -> tuple[Path | None, Path | None]:
    """Return the shipped projector file and adapter folder, None for what this installation lacks."""
    from importlib import resources

    folder = Path(str(resources.files("vae_qwen3vl") / "weights"))
    projector, lora = folder / PROJECTOR_NAME, folder / LORA_NAME
    return projector if projector.is_file() else None, lora if lora.is_dir() else None


def adapter_beside(projector: str | os.PathLike[str]) -> Path | None:
    """Return the adapter that lies beside a projector as in a run's folder or the shipped weights, else None.

    Raises:
        ValueError: the run trained one, but it is not there.
    """
    path = Path(projector)
    folder = path.parent / {PROJECTOR_FINAL: LORA_FINAL, PROJECTOR_NAME: LORA_NAME}.get(path.name, LORA_FINAL)
    if path.name not in (PROJECTOR_FINAL, PROJECTOR_NAME):
        return None
    if folder.is_dir():
        logger.info("%s was trained with it and is used (--lora_dir none leaves it out)", folder)
        return folder
    arguments = path.parent / ARGUMENTS
    if arguments.is_file() and AlignmentConfig.from_file(arguments).use_lora:
        raise _adapter_missing(projector)
    return None


def _adapter_missing(projector: str | os.PathLike[str]) -> ValueError:
    return ValueError(
        f"{os.fspath(projector)} was trained with a LoRA adapter, which does not lie beside it: give it with "
        f"--lora_dir DIR, or --lora_dir {NO_LORA} to do without"
    )


def load_describer(
    vae: SparseSDFVQVAE | None,
    vl_model: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vae_hash: str | None = None,
) -> Qwen3VLWith3DBranch:
    """Load a language model with its 3D branch, in evaluation mode, adapters merged into its weights.

    Args:
        vae: the tokenizer whose codes it will read; None where codes are cached.
        vl_model: see `resolve_vl_model`; None is the default language model.
        projector: trained projector; None takes the shipped one, which belongs to the default language model.
        lora: adapter folder trained with that projector; None takes the one that lies beside it (`adapter_beside`),
            `NO_LORA` none.
        device: where to; CUDA where present by default.
        dtype: of the language model; None takes `inference_dtype`.
        vae_hash: fingerprint of the tokenizer behind cached codes.

    Raises:
        ValueError: no projector is known for this language model, or the parts do not fit each other, or the
            projector was trained with an adapter that is neither given nor beside it.
        LanguageModelUnavailableError: the language model can't be had.
    """
    from vae_qwen3vl.language.adapters import merge_lora
    from vae_qwen3vl.language.backbone import inference_dtype
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    target = resolve_device(device)
    source = resolve_vl_model(vl_model)
    is_default = source == default_lm_folder()
    if vl_model is None:
        logger.info("language model: %s (the default)", DEFAULT_LM)
    if projector is None and lora in (None, NO_LORA):
        if not is_default:
            raise ValueError(
                f"the shipped projector belongs to {DEFAULT_LM}, not to {vl_model}: give --projector_ckpt "
                "(and --lora_dir) trained for it"
            )
        projector, beside = shipped_weights()
        lora = lora or beside
    elif projector is not None and lora is None:
        lora = adapter_beside(projector)
    model = Qwen3VLWith3DBranch(
        str(source), vae_model=vae, torch_dtype=dtype or inference_dtype(target), max_3d_tokens=512
    )
    if projector is not None:
        about = model.load_projector(projector, vae_hash=vae_hash)
        if about.with_lora and lora is None:
            raise _adapter_missing(projector)
    else:
        logger.warning("no trained projector: the language model reads noise, and its words mean nothing")
    if lora is not None and lora != NO_LORA:
        model.load_lora(lora)
        model.vl_model = merge_lora(model.vl_model)
    return model.to(target).eval()


@torch.no_grad()
def describe(
    model: Qwen3VLWith3DBranch, codes: ShapeCodes, prompt: str | None = None, *, max_new_tokens: int = 64
) -> Description:
    """Answer a prompt about one object's codes, greedily.

    Args:
        model: from `load_describer`, with the tokenizer the codes were made with.
        codes: the object.
        prompt: None takes the one the projector was trained with.
        max_new_tokens: length of the answer.
    """
    from sdf_vqvae.codes.pipeline import check_codes
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
    from vae_qwen3vl.sequence_3d import joined_coords
    from vae_qwen3vl.vae_latent_extractor import codebook_vectors

    check_codes(model.vae_model, codes)
    feats = codebook_vectors(codes.codes, model.vae_model)  # [M, D]
    coords = joined_coords([codes.coords])  # [M, 4]
    asked = prompt or model.prompt or DEFAULT_PROMPT
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    inputs = model.build_inputs(**processor(asked), feats_3d=feats, coords_3d=coords, padding_side="left")
    answer = model.vl_model.generate(**inputs.model_kwargs(), do_sample=False, max_new_tokens=max_new_tokens)
    (text,) = processor.decode(answer)
    return Description(text=text, prompt=asked, tokens_3d=len(inputs.tokens_3d.coords))
