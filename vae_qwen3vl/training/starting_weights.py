"""What a training run starts from: new weights, those of an earlier run, or the shipped ones.

The parts that it starts from say what shape they have; the settings of the run say the same afterwards, so that its
folder's name and its arguments are true. Knows settings and files; `settled` loads no model.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from sdf_vqvae.utils.errors import brief
from vae_qwen3vl.config import AlignmentConfig, flag_of
from vae_qwen3vl.describer import shipped_weights
from vae_qwen3vl.language.adapters import TARGETS, read_adapter_config
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector_file import load_projector

logger = logging.getLogger(__name__)

DATA = "train_sdf_dataset"
"""What is trained on where nothing is named: the folder of the documentation."""
_SAME = {
    "projector_layers": "num_layers",
    "merge": "merge",
    "use_3d_pos": "use_3d_pos",
    "shape_tokens": "shape_tokens",
}
"""Settings of a projector's shape, and what its file calls them."""


def settled(config: AlignmentConfig) -> AlignmentConfig:
    """Return the settings that a run follows: with its data, and the shape of the parts it starts from.

    Raises:
        ValueError: the parts are not there or can't be read.
    """
    found: dict[str, Any] = {}
    if config.data_dir is None and not config.dummy_data:
        found["data_dir"] = DATA
    lora = config.init_lora
    if config.start_from == "shipped":
        projector, adapters = shipped_weights()
        if projector is None or adapters is None:
            raise ValueError("start_from: this installation lacks the shipped projector or adapters: reinstall")
        description = load_projector(projector)[1]
        found |= {key: getattr(description, name) for key, name in _SAME.items()}
        lora = str(adapters) if config.use_lora else None
    if lora is not None:
        found |= _shape_of_adapters(lora)
    asked = config.to_dict()
    pairs = ", ".join(f"{k} {v} (not {asked[k]})" for k, v in found.items() if asked[k] not in (None, v))
    if pairs:
        logger.info("what training starts from keeps its shape: %s", pairs)
    return dataclasses.replace(config, **found)


def _shape_of_adapters(folder: str) -> dict[str, Any]:
    """Return rank, scale and targets of a peft folder, as the settings call them."""
    about = read_adapter_config(folder)
    if getattr(about, "r", None) is None or getattr(about, "target_modules", None) is None:
        raise ValueError(f"init_lora: {folder} holds an adapter that is no LoRA ({about.peft_type})")
    targets = [name for name, modules in TARGETS.items() if set(modules) == set(about.target_modules)]
    shape = {"lora_r": about.r, "lora_alpha": about.lora_alpha}
    return shape | ({"lora_targets": targets[0]} if targets else {})


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
    found = model.projector.float()
    grows = new.shape_tokens > found.shape_tokens == 0
    for key, name in _SAME.items():
        if getattr(found, name) != getattr(new, name) and not (grows and key == "shape_tokens"):
            raise ValueError(
                f"init_projector: {path} has {key} {getattr(found, name)}, the settings say {getattr(new, name)}; "
                f"give {flag_of(key, getattr(found, name))}"
            )
    if grows:
        try:
            new.load_state_dict({**new.state_dict(), **found.state_dict()})  # tokens of whole shapes are learned anew
        except RuntimeError as error:
            raise ValueError(f"init_projector: {path} does not fit ({brief(error)})") from error
        model.projector = new
    model.positions, model.max_3d_tokens, model.truncate_mode = reading
