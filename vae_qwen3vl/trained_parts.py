"""Where trained parts lie: the shipped ones, and those of a run's folder.

Knows names of files and what a run's settings say; opens no model.
"""

from __future__ import annotations

import logging
import os
from importlib import resources
from pathlib import Path

from vae_qwen3vl.config import AlignmentConfig

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
"""Name of the model that comes with this distribution, wherever a folder of one may stand."""
PROJECTOR_NAME = "projector.safetensors"
LORA_NAME = "lora"
"""Names of the shipped parts, and of those of a saved model."""
PROJECTOR_FINAL = "projector_final.pt"
LORA_FINAL = "lora_final"
ARGUMENTS = "train_args.json"
"""Names of the parts in a run's folder, and of the settings that they were trained with."""
NO_LORA = "none"
"""Instead of an adapter's folder: none, even where one lies beside the projector."""


def shipped_folder() -> Path:
    """Return the folder of the shipped weights."""
    return Path(str(resources.files("vae_qwen3vl") / "weights"))


def shipped_weights() -> tuple[Path | None, Path | None]:
    """Return the shipped projector file and adapter folder, None for what this installation lacks."""
    projector, lora = shipped_folder() / PROJECTOR_NAME, shipped_folder() / LORA_NAME
    return projector if projector.is_file() else None, lora if lora.is_dir() else None


def is_model_folder(name: str | os.PathLike[str]) -> bool:
    """Return whether this names the shipped model, a saved one or a training run, and no language model alone."""
    path = Path(name)
    return name == SHIPPED or (path / PROJECTOR_NAME).is_file() or (path / PROJECTOR_FINAL).is_file()


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
        raise adapter_missing(projector)
    return None


def parts_for(
    vl_model: str | os.PathLike[str] | None,
    is_default: bool,
    projector: str | os.PathLike[str] | None,
    lora: str | os.PathLike[str] | None,
) -> tuple[str | os.PathLike[str] | None, str | os.PathLike[str] | None]:
    """Return projector and adapter for a language model: those given, or what belongs to it.

    Args:
        vl_model: the language model's name, for the message,
        is_default: and whether it is the default one.
        projector: None takes the shipped one (of the default language model), unless an adapter is given.
        lora: None takes the one that lies beside the projector, `NO_LORA` none.

    Raises:
        ValueError: no projector is known for this language model, or its adapter is missing.
    """
    if projector is None and lora in (None, NO_LORA):
        if not is_default:
            raise ValueError(
                f"the shipped projector belongs to the default language model, not to {vl_model}: give "
                "--projector_ckpt (and --lora_dir) trained for it"
            )
        projector, beside = shipped_weights()
        lora = lora or beside
    elif projector is not None and lora is None:
        lora = adapter_beside(projector)
    return projector, lora


def adapter_missing(projector: str | os.PathLike[str]) -> ValueError:
    """Return the error that says that a projector's adapter is not there."""
    return ValueError(
        f"{os.fspath(projector)} was trained with a LoRA adapter, which does not lie beside it: give it with "
        f"--lora_dir DIR, or --lora_dir {NO_LORA} to do without"
    )
