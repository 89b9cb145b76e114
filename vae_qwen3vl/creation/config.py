"""What a generator is made of, and how it is asked: data classes, and nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdf_vqvae.utils.settings import Amount, Positive, Share, check, check_keys, settings_of
from vae_qwen3vl.creation.grids import sides_of


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The architecture of the two networks."""

    side: Positive = 32
    """Cells an axis of the latent grid."""
    codebook_size: Positive = 16384
    """Codes K."""
    code_width: Positive = 16
    """Numbers of a code's vector, D."""
    text_width: Positive = 384
    """Numbers of a word's vector, as the sentence model gives it."""
    width: Positive = 256
    """Numbers of a token inside the networks, H."""
    heads: Positive = 4
    """Heads of attention."""
    where_blocks: Positive = 5
    """Blocks of the network that says which cells are occupied."""
    what_blocks: Positive = 8
    """Blocks of the network that says their codes."""
    dropout: Share = 0.2
    """Share of the numbers that a block's parts leave out while training."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self)
        sides_of(self.side)
        if self.width % self.heads or self.width // self.heads < 6:
            raise ValueError(f"width {self.width} in {self.heads} heads: a head needs the same 6 numbers or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the values."""
        return asdict(self)

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> GeneratorConfig:
        """Read the values. Raises a ValueError that names what is wrong."""
        check_keys("generator", values, settings_of(cls))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn (MaskGIT: Chang et al. 2022; settings after MoMask: Guo et al. 2024)."""

    steps: Positive = 12
    """Steps of every level, and of the codes."""
    guidance: Amount = 3.0
    """How much the words count: 1 as learned, 0 not at all; more moves away from what is likely without words."""
    temperature: Amount = 1.0
    """Of what is drawn; 0 takes the likeliest."""
    order_noise: Amount = 4.5
    """Noise in the order in which draws are kept, at the first step; it falls to 0 at the last. 0 always keeps the
    most confident ones."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self, by_flag=True)
