"""Chooses among candidates about a shape: sentences into vectors, the shape into one, and its neighbors' words.

    chooser = Chooser.load(CandidateSettings(candidates=16), codebook, vae_hash)
    choice = chooser.choose(["a chair", "a stool", "a chair"], codes)

Knows sentences and shapes; knows nothing of the language model that wrote them (`asking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.candidates.choice import Choice, choose
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, embed, load_sentence_encoder
from vae_qwen3vl.search import ShapeIndex
from vae_qwen3vl.search.vectors import ShapeVectors, shipped_search_weights


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """Takes one of several sentences about a shape."""

    settings: CandidateSettings
    encoder: SentenceEncoder
    """In whose space sentences are compared."""
    vectors: ShapeVectors | None = None
    """Codes into that space; None chooses by the sentences alone."""
    index: ShapeIndex | None = None
    """Whose words are candidates too."""

    @classmethod
    def load(
        cls, settings: CandidateSettings, codebook: Tensor, vae_hash: str, device: torch.device | str = "cpu"
    ) -> Chooser:
        """Load what the settings need: the sentence model, the shipped search head or that of the index.

        Args:
            settings: what to choose among, and by what.
            codebook: `[K, D]` of the tokenizer.
            vae_hash: its fingerprint.
            device: where to compute.

        Raises:
            ValueError: the index or the search head is of another tokenizer, or not there.
            SentenceModelUnavailableError: the sentence model can't be had.
        """
        index = None if settings.neighbors is None else ShapeIndex.open(settings.neighbors)
        if index is not None and index.manifest.vae_hash != vae_hash:
            raise ValueError(
                f"--neighbors {settings.neighbors} is an index of codes of the VAE {index.manifest.vae_hash[:12]}, "
                f"these are of {vae_hash[:12]}: index codes of that one"
            )
        vectors = None
        if settings.shape_weight > 0:
            vectors = _shipped(codebook, vae_hash, device) if index is None else index.shapes
        encoder = load_sentence_encoder(None if vectors is None else vectors.head.sentence_model, device=device)
        return cls(settings=settings, encoder=encoder, vectors=vectors, index=index)

    def choose(self, texts: Sequence[str], codes: ShapeCodes | None = None, *, lend: bool = True) -> Choice:
        """Return the one of the candidates, those of the index among them, that is taken.

        Args:
            texts: what was said; the first one is the likeliest, and is taken where others are as good.
            codes: the shape; None, or several in one chat, chooses by the sentences alone.
            lend: take the words of the index too, where there is one.

        Raises:
            ValueError: there is no candidate; or the codes are of another tokenizer than the index.
        """
        candidates = [*texts, *(self._lent(codes) if lend else ())]
        toward = None
        if self.vectors is not None and codes is not None:
            (toward,) = self.vectors([codes.codes], [codes.coords]).cpu()
        return choose(candidates, embed(self.encoder, candidates), toward, self.settings.shape_weight)

    def _lent(self, codes: ShapeCodes | None) -> list[str]:
        """Return the words of the nearest objects of the index."""
        if self.index is None or codes is None:
            return []
        hits = self.index.by_shape(codes, self.settings.neighbor_count)
        return [words for hit in hits if (words := hit.about.partition(" / ")[0] or hit.name)]


def _shipped(codebook: Tensor, vae_hash: str, device: torch.device | str) -> ShapeVectors:
    """Return what the shipped search head makes of codes. Raises a ValueError where they are of another tokenizer."""
    try:
        vectors = ShapeVectors.load(*shipped_search_weights(), codebook, device)
        reads = vectors.tokens.description.vae_hash
        if reads not in (None, vae_hash):
            raise ValueError(f"the search head reads codes of the VAE {str(reads)[:12]}, not of {vae_hash[:12]}")
    except ValueError as error:
        raise ValueError(f"{error}: give --shape_weight 0, which chooses without it") from error
    return vectors
