"""Words, or a part of an object, in; objects with codes and meshes out. One generator, tokenizer and sentence model.

A draw whose codes have no surface is told of, and the next seed is taken.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.pipeline import decode_codes, surface_of
from sdf_vqvae.codes.shape_codes import ShapeCodes, check_codes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.errors import brief
from vae_qwen3vl.creation.batches import conditions, proportions_of
from vae_qwen3vl.creation.config import Sampling
from vae_qwen3vl.creation.drawing import draw_shape
from vae_qwen3vl.creation.generator import ShapeGenerator
from vae_qwen3vl.creation.generator_file import GeneratorAbout, load_generator, read_about
from vae_qwen3vl.creation.known import KnownShape
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, load_sentence_encoder, word_vectors

logger = logging.getLogger(__name__)

_FAILURES_AN_OBJECT = 8
"""Draws without a surface that are passed over for each object that is asked for."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One object that was made."""

    seed: int
    """That draws it again."""
    codes: ShapeCodes
    mesh: trimesh.Trimesh
    """In the units of the object it was made from; of words alone, in a cube of side 1 round the origin, +y up."""


class ShapeMaker:
    """Makes objects.

    Args:
        generator: see `load_generator`.
        about: what belongs to it.
        vae: the tokenizer whose codes it makes.
        encoder: the sentence model whose words it reads.
    """

    def __init__(
        self, generator: ShapeGenerator, about: GeneratorAbout, vae: SparseSDFVQVAE, encoder: SentenceEncoder
    ) -> None:
        self.generator, self.about, self.vae, self.encoder = generator, about, vae, encoder

    @classmethod
    def load(cls, folder: str | os.PathLike[str], vae: SparseSDFVQVAE) -> ShapeMaker:
        """Load a generator for a tokenizer, on its device.

        Raises:
            ValueError: see `load_generator` and `load_sentence_encoder`.
        """
        if vae.vq.columns != 1:
            raise ValueError("cells of this tokenizer may have two codes, and a generator makes one a cell")
        table = vae.vq.embeddings.weight.detach()
        generator, about = load_generator(folder, table, vae.fingerprint(), vae.device)
        encoder = load_sentence_encoder(read_about(folder)[1].sentence_model, device=vae.device)
        return cls(generator, about, vae, encoder)

    def make(
        self,
        words: str = "",
        *,
        count: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        proportions: tuple[float, float, float] | None = None,
        cells: int | None = None,
    ) -> Iterator[Made]:
        """Yield objects that words tell of.

        Args:
            words: English; empty for any object.
            count: how many.
            seed: of the first one; each further one has the next seed.
            sampling: how to draw.
            proportions: width, height and depth to each other, in any unit.
            cells: about how many cells of the latent grid are occupied: detail and bulk.

        Raises:
            ValueError: too many draws have no surface.
        """
        blank = ShapeCodes(
            codes=torch.zeros(1, dtype=torch.int32),
            coords=torch.zeros(1, 3, dtype=torch.int32),
            latent_resolution=self.generator.config.side,
            data_resolution=self.about.data_resolution,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            vae_hash=self.about.vae_hash,
        )
        sides = torch.zeros(3) if proportions is None else torch.tensor(proportions) / max(proportions) * 0.95
        yield from self._made(blank, words, sides, cells, proportions is not None, None, count, seed, sampling)

    def complete(
        self,
        source: ShapeCodes,
        region: Tensor,
        words: str = "",
        *,
        count: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Iterator[Made]:
        """Yield objects that have the codes of another one inside a region, and new ones outside.

        Args:
            source: the other one.
            region: bool `[S, S, S]`, cells of the latent grid.
            words: what the whole is to be; may be empty.
            count: how many.
            seed: see `make`.
            sampling: how to draw.

        Raises:
            ValueError: the source is of another tokenizer, nothing of it is in the region, or see `make`.
        """
        check_codes(self.vae, source)
        known = KnownShape.inside(region, source.codes, source.coords)
        if not bool((known.states == 1).any()):
            raise ValueError("nothing of the object is inside what is to be kept")
        sides = proportions_of(source.coords, source.latent_resolution)
        yield from self._made(source, words, sides, len(source.codes), True, known, count, seed, sampling)

    def _made(
        self,
        source: ShapeCodes,
        words: str,
        proportions: Tensor,
        cells: int | None,
        box: bool,
        known: KnownShape | None,
        count: int,
        seed: int,
        sampling: Sampling | None,
    ) -> Iterator[Made]:
        given = conditions(
            word_vectors(self.encoder, [words]),
            proportions[None],
            torch.tensor([float(cells or 1)]),
            torch.tensor([[box, cells is not None]]),
            width=self.generator.config.text_width,
        )
        failed = 0
        made = 0
        while made < count:
            try:
                drawn = draw_shape(self.generator, given, seed=seed, sampling=sampling, known=known)
                result = self._surface(source, *drawn, seed)
            except ValueError as error:
                failed += 1
                if failed > _FAILURES_AN_OBJECT * count:
                    raise ValueError(
                        f"{failed} draws have no surface, the last one (seed {seed}): {brief(error)}; other "
                        "words, or a generator that was trained longer, may do better"
                    ) from error
                logger.warning("seed %d is passed over: %s", seed, brief(error))
            else:
                made += 1
                yield result
            seed += 1

    def _surface(self, source: ShapeCodes, codes: Tensor, cells: Tensor, seed: int) -> Made:
        shape = ShapeCodes(
            **{**vars(source), "codes": codes.to("cpu", torch.int32), "coords": cells.to("cpu", torch.int32)}
        )
        mesh = surface_of(self.vae, decode_codes(self.vae, shape), shape)
        return Made(seed=seed, codes=shape, mesh=mesh)
