"""The kinds of quantizers under their names in configs. A new kind is a module beside this one and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdf_vqvae.quantizers.euclidean import CosineQuantizer, EuclideanQuantizer
from sdf_vqvae.quantizers.fsq import FSQQuantizer
from sdf_vqvae.quantizers.quantizer import Quantizer
from sdf_vqvae.quantizers.residual import ResidualQuantizer
from sdf_vqvae.quantizers.simvq import SimVQQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "euclidean": EuclideanQuantizer,
    "cosine": CosineQuantizer,
    "simvq": SimVQQuantizer,
    "fsq": FSQQuantizer,
    "residual": ResidualQuantizer,
}


def check_quantizer(config: Mapping[str, Any]) -> None:
    """Raise a ValueError if the values of a `VAEConfig` ask for a kind that they don't fit."""
    chosen = config["quantizer"]
    for name, kind in QUANTIZERS.items():
        for key in kind.own_settings:
            if (name == chosen) != bool(config[key]):
                raise ValueError(f"{key} belongs to quantizer={name!r}, which needs it")
    QUANTIZERS[chosen].check(config)
    if config["use_ema_update"] and "use_ema_update" not in QUANTIZERS[chosen].settings:
        raise ValueError(f"quantizer={chosen!r} is not learned by moving averages: use_ema_update=false")


def make_quantizer(config: Mapping[str, Any]) -> Quantizer:
    """Make the quantizer that the values of a `VAEConfig` ask for."""
    kind = QUANTIZERS[config["quantizer"]]
    settings = {key: config[key] for key in kind.settings}
    return kind(config["num_embeddings"], config["latent_channels"], **settings)
