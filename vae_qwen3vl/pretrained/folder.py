"""Which files a model is opened from: a saved folder, a training run's, the shipped weights, or a Hub repository.

    config.json                what it is; written last, so what has none is no model
    projector.safetensors      the trained 3D part, with its description
    lora/                      adapters of the language model, where it has any (peft)
    codebook.safetensors       vectors of the codes, with the tokenizer's fingerprint
    language_model/            a plain Qwen checkpoint, unless config.json names one instead
    generation_config.json     how it generates where nothing else is said
    vae/, tokenizer files, chat_template.jinja, processor_config.json      of the processor

The shipped weights are such a folder, by reference to the default language model and the shipped tokenizer. Knows
files; builds no model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdf_vqvae.codes.folder import CODEBOOK, Manifest
from sdf_vqvae.data.objects import Kind
from sdf_vqvae.model.checkpoint import WEIGHTS_NAME, load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.archives import read_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.strict_files import read_mapping
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.language.default_model import DEFAULT_LM, HUB_ID, resolve_vl_model
from vae_qwen3vl.pretrained.configuration import MODEL_TYPE, ShapeVLConfig
from vae_qwen3vl.trained_parts import (
    ARGUMENTS,
    LORA_NAME,
    PROJECTOR_FINAL,
    PROJECTOR_NAME,
    SHIPPED,
    adapter_beside,
    shipped_folder,
)

CONFIG = "config.json"
LANGUAGE_MODEL = "language_model"
VAE = "vae"
VAE_HASH = "vae_hash"
"""Name of the tokenizer's fingerprint, in `CODEBOOK` and in the processor's file."""
_HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of a model are."""

    folder: Path
    """Where the others are, if they are there."""
    reference: str | None
    """What opens the language model, as it is written; None where it is `language_model` in the folder."""
    projector: Path
    lora: str | os.PathLike[str] | None
    """The adapter's folder; `NO_LORA` leaves it out, None says that there is none."""
    vae_config: str | None
    vae_ckpt: str | None
    """The tokenizer's files, as `load_vae_from_config` takes them: both None are the shipped one."""
    codes: Path | None = None
    """A folder of cached codes that a run was trained on."""

    def language_model(self) -> str | Path:
        """Return what `from_pretrained` of the language model takes.

        Raises:
            ValueError: its folder is missing.
            LanguageModelUnavailableError: it is named, and can't be had.
        """
        if self.reference is not None:
            return resolve_vl_model(self.reference)
        inside = self.folder / LANGUAGE_MODEL
        if not (inside / CONFIG).is_file():
            raise ValueError(f"{self.folder} holds no {LANGUAGE_MODEL}, and its {CONFIG} names none: is it complete?")
        return inside

    def words(self) -> str | Path:
        """Return where the tokenizer of words is, and the image processor: here, or with the language model."""
        return self.folder if (self.folder / "tokenizer_config.json").is_file() else self.language_model()

    def codebook(self) -> tuple[Tensor, str]:
        """Return the codebook `[K, D]` of the codes that are read, and the fingerprint of their tokenizer."""
        inside = self.folder / CODEBOOK
        if inside.is_file():
            tensors, about = read_safetensors(inside, "codebook", ("codebook",))
            return tensors["codebook"], about.get(VAE_HASH, "")
        if self.codes is not None and self.vae_ckpt is None and Kind.CODES.is_at(self.codes):
            tensors, _ = read_safetensors(self.codes / CODEBOOK, "codebook", ("codebook",))
            return tensors["codebook"], Manifest.load(self.codes).vae_hash
        vae = self.load_vae()
        return vae.vq.embeddings.weight.detach(), vae.fingerprint()

    def load_vae(self, device: Any = "cpu") -> SparseSDFVQVAE:
        """Load the tokenizer of shapes."""
        return load_vae_from_config(self.vae_config, self.vae_ckpt, device)


def local_folder(name: str | os.PathLike[str], hub: dict[str, Any] | None = None) -> Path:
    """Return the folder that a name stands for; a Hub id is fetched, and never turned into a path.

    Args:
        name: `SHIPPED`, a folder, or a Hub id.
        hub: what `from_pretrained` says of the Hub; the rest is left alone.

    Raises:
        ValueError: no such folder, and no Hub id.
        OSError: the Hub does not have it, or can't be reached.
    """
    text = os.fspath(name)
    if text == SHIPPED:
        return shipped_folder()
    if text and Path(text).is_dir():
        return Path(text)
    if isinstance(name, Path) or not HUB_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no folder and no Hub id; give one of them, or {SHIPPED!r} for the model here")
    from huggingface_hub import snapshot_download

    given = {key: value for key, value in (hub or {}).items() if key in _HUB and value is not None}
    try:
        return Path(snapshot_download(text, **given))
    except OSError as error:
        raise OSError(f"the model {text} can't be had from the Hugging Face Hub: {brief(error)}") from error


def parts_of(folder: Path, config: ShapeVLConfig | None = None) -> Parts:
    """Return where the parts of a model are that a folder holds.

    Args:
        folder: see `local_folder`.
        config: instead of the folder's own `config.json`.

    Raises:
        ValueError: the folder holds no model, or an adapter that belongs to it is missing.
    """
    vae = folder / VAE / WEIGHTS_NAME
    if (folder / CONFIG).is_file():
        about = read_mapping(folder / CONFIG)
        if about.get("model_type") != MODEL_TYPE:
            raise ValueError(f"{folder} holds a model of type {about.get('model_type')!r}, not {MODEL_TYPE!r}")
        reference = about.get("language_model") if config is None else config.language_model
        if not isinstance(reference, str | None):
            raise ValueError(f"{folder / CONFIG}: language_model is {reference!r}, expected a name")
        lora = folder / LORA_NAME
        return Parts(
            folder=folder,
            reference=reference,
            projector=folder / PROJECTOR_NAME,
            lora=lora if lora.is_dir() else None,
            vae_config=None,
            vae_ckpt=str(vae) if vae.is_file() else None,
        )
    projector, arguments = folder / PROJECTOR_FINAL, folder / ARGUMENTS
    if not projector.is_file() or not arguments.is_file():
        there = f"holds no {CONFIG}" if (folder / PROJECTOR_NAME).is_file() else "holds no model"
        raise ValueError(
            f"{folder} {there}: expected what save_pretrained writes ({CONFIG}, {PROJECTOR_NAME}; was it stopped?), "
            f"or a training run that has ended ({PROJECTOR_FINAL}, {ARGUMENTS})"
        )
    run = AlignmentConfig.from_file(arguments)
    return Parts(
        folder=folder,
        reference=run.vl_model or DEFAULT_LM,
        projector=projector,
        lora=adapter_beside(projector),
        vae_config=run.vae_config,
        vae_ckpt=run.vae_ckpt,
        codes=None if run.data_dir is None else Path(run.data_dir),
    )
