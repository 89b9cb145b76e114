"""The model that a training run starts with: of new weights, those of an earlier run, or the shipped ones.

The parts that it starts from say what shape they have; the settings of the run say the same afterwards, so that its
folder's name and its arguments are true. Knows settings, files and models; nothing of data and of the loop.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch

from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.settings import flag_of
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.language.adapters import TARGETS, read_adapter_config
from vae_qwen3vl.language.backbone import compile_layers
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.trained_parts import shipped_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sdf_vqvae.codes.folder import CodeFolder

logger = logging.getLogger(__name__)

DATA = "train_sdf_dataset"
"""What is trained on where nothing is named: the folder of the documentation."""
_DUMMY_WIDTH = 16
"""Code width of random objects."""
_SAME = {
    "projector_layers": "num_layers",
    "merge": "merge",
    "use_3d_pos": "use_3d_pos",
    "shape_tokens": "shape_tokens",
    "encoder_layers": "encoder_layers",
}
"""Settings of a projector's shape, and what its file calls them."""


def settled(config: AlignmentConfig) -> AlignmentConfig:
    """Return the settings that a run follows: with its data, and the shape of the parts it starts from.

    Raises:
        ValueError: the parts are not there or can't be read.
    """
    changes: dict[str, Any] = {}
    if config.data_dir is None and not config.dummy_data:
        changes["data_dir"] = DATA
    lora = config.init_lora
    if config.start_from == "shipped":
        projector, adapters = shipped_weights()
        if projector is None or adapters is None:
            raise ValueError("start_from: this installation lacks the shipped projector or adapters: reinstall")
        description = load_projector(projector)[1]
        changes |= {key: getattr(description, name) for key, name in _SAME.items()}
        lora = str(adapters) if config.use_lora else None
    if lora is not None:
        changes |= _shape_of_adapters(lora)
    asked = config.to_dict()
    pairs = ", ".join(f"{k} {v} (not {asked[k]})" for k, v in changes.items() if asked[k] not in (None, v))
    if pairs:
        logger.info("what training starts from keeps its shape: %s", pairs)
    return dataclasses.replace(config, **changes)


def _shape_of_adapters(folder: str) -> dict[str, Any]:
    """Return rank, scale and targets of a peft folder, as the settings call them."""
    about = read_adapter_config(folder)
    if getattr(about, "r", None) is None or getattr(about, "target_modules", None) is None:
        raise ValueError(f"init_lora: {folder} holds an adapter that is no LoRA ({about.peft_type})")
    targets = [name for name, modules in TARGETS.items() if set(modules) == set(about.target_modules)]
    shape = {"lora_r": about.r, "lora_alpha": about.lora_alpha}
    return shape | ({"lora_targets": targets[0]} if targets else {})


def tokenizer_of(
    config: AlignmentConfig, codes: CodeFolder | None, accelerator: Accelerator
) -> tuple[Any, int, str | None]:
    """Return the tokenizer, or None where cached codes or random objects need none; its code width; its fingerprint.

    Raises:
        ValueError: the cached codes are of another tokenizer than the one that the settings name.
    """
    named = config.vae_config is not None or config.vae_ckpt is not None
    if not named and (config.dummy_data or codes is not None):
        if codes is None:
            return None, _DUMMY_WIDTH, None
        return None, codes.codebook.shape[1], codes.manifest.vae_hash
    vae = load_vae_from_config(config.vae_config, config.vae_ckpt, accelerator.device)
    if codes is not None and codes.manifest.vae_hash != vae.fingerprint():
        raise ValueError(
            f"data_dir: the codes in {config.data_dir} are of the VAE {codes.manifest.vae_hash[:12]}, but vae_config "
            f"and vae_ckpt name {vae.fingerprint()[:12]}: encode the dataset again, or leave both out"
        )
    return vae, vae.vq.embeddings.weight.shape[1], vae.fingerprint()


def build_model(
    config: AlignmentConfig, source: str, vae: Any, width: int, device: torch.device, *, vae_hash: str | None = None
) -> Qwen3VLWith3DBranch:
    """Return the 3D branch as the settings say, with new projector and adapters or those to start from.

    Raises:
        ValueError: what is to be started from doesn't fit the settings, the language model or the tokenizer.
    """
    model = Qwen3VLWith3DBranch(
        source,
        vae_model=vae,
        latent_dim=width,
        torch_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        **config.model_settings(),
    )
    projector, lora = parts_to_start_from(config)
    if projector is not None:
        start_projector(model, projector, config, vae_hash)
    if lora is not None:
        model.load_lora(lora, trainable=True, dropout=config.lora_dropout)
    elif config.use_lora:
        alpha = config.lora_alpha or 2 * config.lora_r
        model.add_lora(config.lora_r, alpha, config.lora_dropout, config.lora_targets)
    if config.compile_layers:
        compile_layers(model.vl_model)
    if config.use_gradient_checkpointing:
        model.vl_model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def parts_to_start_from(config: AlignmentConfig) -> tuple[str | None, str | None]:
    """Return the projector's file and the adapters' folder that a run starts from, None for what is new."""
    if config.start_from == "shipped":
        projector, adapters = shipped_weights()
        return str(projector), str(adapters) if config.use_lora else None
    return config.init_projector, config.init_lora


def start_projector(model: Qwen3VLWith3DBranch, path: str, config: AlignmentConfig, vae_hash: str | None) -> None:
    """Give a model the projector to start from; what reads it stays as the settings say.

    Raises:
        ValueError: the projector is another one than the settings describe.
    """
    new, reading = model.projector, (model.positions, model.max_3d_tokens, model.truncate_mode)
    model.load_projector(path, vae_hash=vae_hash)
    read = model.projector.float()
    grows = new.shape_tokens > read.shape_tokens == 0
    for key, name in _SAME.items():
        if getattr(read, name) != getattr(new, name) and not (grows and key == "shape_tokens"):
            raise ValueError(
                f"init_projector: {path} has {key} {getattr(read, name)}, the settings say {getattr(new, name)}; "
                f"give {flag_of(key, getattr(read, name))}"
            )
    if grows:
        try:
            new.load_state_dict({**new.state_dict(), **read.state_dict()})  # tokens of whole shapes are learned anew
        except RuntimeError as error:
            raise ValueError(f"init_projector: {path} does not fit ({brief(error)})") from error
        model.projector = new
    model.positions, model.max_3d_tokens, model.truncate_mode = reading
