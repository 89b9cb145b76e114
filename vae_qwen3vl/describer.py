"""A model that describes shapes, ready to use: language model, projector and adapter that belong together.

Knows which parts belong together. Building, merging and generating are `model.py`'s.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.runtime import resolve_device, without_collector
from vae_qwen3vl.answer_confidence import CALIBRATION, Calibration, check_calibrated, file_hash, four_digits, hedged
from vae_qwen3vl.language.default_model import DEFAULT_LM, default_lm_folder, resolve_vl_model
from vae_qwen3vl.trained_parts import NO_LORA, adapter_missing, is_model_folder, parts_for

if TYPE_CHECKING:
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model says about one object."""

    text: str
    prompt: str
    tokens_3d: int
    """3D tokens that the language model read, without the two markers."""
    mean_probability: float | None = None
    """Of the answer's tokens, its end among them; None where it was chosen among several."""
    confidence: float | None = None
    """Probability that the answer is right; None where the model has no calibration of such answers."""
    abstained: bool = False
    """Whether `text` says only what it is like, for the confidence was too low."""


@waiting("loading the language model")
@without_collector()
def load_describer(
    vae: SparseSDFVQVAE | None,
    vl_model: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    vae_hash: str | None = None,
    plain_chats: bool = True,
) -> Qwen3VLWith3DBranch:
    """Load a language model with its 3D branch, in evaluation mode, adapters merged into its weights.

    Args:
        vae: the tokenizer whose codes it will read; None where codes are cached.
        vl_model: see `resolve_vl_model`; None is the default language model. A saved model or a training run, which
            has all the parts but the tokenizer, is taken too.
        projector: trained projector; None takes the shipped one, which belongs to the default language model.
        lora: adapter folder trained with that projector; None takes the one that lies beside it (`adapter_beside`),
            `NO_LORA` none.
        device: where to; CUDA where present by default.
        dtype: of the language model; None takes `inference_dtype`, "auto" that of its files.
        vae_hash: fingerprint of the tokenizer behind cached codes.
        plain_chats: answer chats without an object as the language model without adapters does, for which the weights
            from before are kept: of the default one 212 MB, 425 MB in float32. False is for who has an object always.

    Raises:
        ValueError: no projector is known for this language model, or the parts do not fit each other, or the
            projector was trained with an adapter that is neither given nor beside it.
        LanguageModelUnavailableError: the language model can't be had.
    """
    from vae_qwen3vl.language.adapters import load_merged
    from vae_qwen3vl.language.backbone import inference_dtype
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    target = resolve_device(device)
    if vl_model is not None and is_model_folder(vl_model):
        return _open_folder(vae, vl_model, (projector, lora), target, dtype, vae_hash, plain_chats)
    source = resolve_vl_model(vl_model)
    if vl_model is None:
        logger.info("language model: %s (the default)", DEFAULT_LM)
    projector, lora = parts_for(vl_model, source == default_lm_folder(), projector, lora)
    model = Qwen3VLWith3DBranch(
        str(source), vae_model=vae, torch_dtype=dtype or inference_dtype(target), max_3d_tokens=512
    )
    if projector is not None:
        about = model.load_projector(projector, vae_hash=vae_hash)
        if about.with_lora and lora is None:
            raise adapter_missing(projector)
        model.calibration = calibration_beside(projector)
    else:
        logger.warning("no trained projector: the language model reads noise, and its words mean nothing")
    if lora is not None and lora != NO_LORA:
        model.vl_model = load_merged(model.vl_model, lora, keep_untouched=plain_chats)
    return _ready(model, target)


def _open_folder(
    vae: SparseSDFVQVAE | None,
    folder: str | os.PathLike[str],
    others: tuple[Any, Any],
    device: torch.device,
    dtype: torch.dtype | str | None,
    vae_hash: str | None,
    plain_chats: bool,
) -> Qwen3VLWith3DBranch:
    """Load what `save_pretrained` wrote, or a training run."""
    from vae_qwen3vl.language.backbone import inference_dtype
    from vae_qwen3vl.pretrained import ShapeVLForConditionalGeneration
    from vae_qwen3vl.pretrained.folder import local_folder, parts_of

    if others != (None, None):
        raise ValueError(f"{folder} has its own projector and adapter: leave --projector_ckpt and --lora_dir out")
    model = ShapeVLForConditionalGeneration.from_pretrained(
        folder, merge_adapter=True, plain_chats=plain_chats, dtype=dtype or inference_dtype(device)
    )
    model.check_vae(vae_hash if vae is None else vae.fingerprint())
    model.branch.vae_model = vae
    model.branch.calibration = calibration_beside(parts_of(local_folder(folder)).projector)
    return _ready(model.branch, device)


def _ready(model: Qwen3VLWith3DBranch, device: torch.device) -> Qwen3VLWith3DBranch:
    from vae_qwen3vl.language.backbone import fuse_norms

    if device.type == "cuda":
        fuse_norms(model.vl_model)
    return model.to(device).eval()


def calibration_beside(projector: str | os.PathLike[str]) -> Calibration | None:
    """Return the calibration that lies beside a projector, None if there is none or it is another projector's."""
    path = Path(projector).with_name(CALIBRATION)
    if not path.is_file():
        return None
    known = Calibration.load(path)
    if known.projector != file_hash(projector):
        logger.warning("%s is of another projector, and is not used", path)
        return None
    return known


def describe(
    model: Qwen3VLWith3DBranch,
    codes: ShapeCodes,
    prompt: str | None = None,
    *,
    max_new_tokens: int = 64,
    abstain: float | None = None,
) -> Description:
    """Answer a prompt about one object's codes, greedily.

    Args:
        model: from `load_describer`, with the tokenizer the codes were made with.
        codes: the object.
        prompt: None takes the one the projector was trained with.
        max_new_tokens: length of the answer.
        abstain: below this confidence the answer is "something like a ...".

    Raises:
        ValueError: the codes are another tokenizer's, or prompt and answer don't fit into the language model; or
            `abstain` is given, and the model has no calibration of answers to this question.
    """
    from vae_qwen3vl.generation.engine import Engine, Sampling
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

    asked = prompt or model.prompt or DEFAULT_PROMPT
    if abstain is not None:
        check_calibrated(model.calibration, asked)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    content = [{"type": "3d"}, {"type": "text", "text": asked}]
    with Engine(model, processor, max_batch=1, prefix_tokens=0) as engine:
        answer = engine.submit(
            [{"role": "user", "content": content}], [codes], Sampling(max_new_tokens=max_new_tokens)
        )
        answer.text()
    (text,) = processor.decode([answer.token_ids])
    unsure = abstain is not None and answer.confidence is not None and answer.confidence < abstain
    return Description(
        text=hedged(text) if unsure else text,
        prompt=asked,
        tokens_3d=answer.tokens_3d,
        mean_probability=four_digits(answer.mean_probability),
        confidence=four_digits(answer.confidence),
        abstained=unsure,
    )
