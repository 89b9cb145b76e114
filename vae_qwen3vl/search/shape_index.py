"""An index that is asked: which objects are like these words, or like this shape.

Every row is compared: at a million rows that takes about a tenth of a second and misses nothing
(docs/search.md). Vectors are mapped into memory, so an index larger than it works too.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sdf_vqvae.codes.folder import Manifest, read_shard
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.geometry.up import UP_UNSAID
from sdf_vqvae.utils.archives import read_safetensors
from vae_qwen3vl.search import store
from vae_qwen3vl.search.vectors import ShapeVectors

if TYPE_CHECKING:
    from vae_qwen3vl.language.sentence_encoder import SentenceEncoder

logger = logging.getLogger(__name__)

_LATIN_ENDS = 0x250
"""Letters from here on are of other scripts."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An object that was found."""

    id: str
    name: str
    """What it is called."""
    score: float
    """Cosine with what was asked; 1 is the same."""
    source: str
    """Its file, where it has one; else the collection that it comes from."""
    about: str
    """What its table says of it."""


def unread_letters(text: str) -> str:
    """Return the letters of a text that the sentence model does not read: it knows English."""
    return "".join(dict.fromkeys(letter for letter in text if letter.isalpha() and ord(letter) >= _LATIN_ENDS))


class ShapeIndex:
    """An index, opened to be asked, from any thread; rows that come while it is open are seen when it is opened anew.

    Args:
        folder: what `vae-qwen3vl index` made.

    Raises:
        ValueError: it is no index, or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = store.IndexManifest.load(self.folder)
        self._table, self._lock = store.read_objects(self.folder), threading.Lock()
        with store.telling(self.folder):
            (rows,) = self._table.execute("SELECT count(*) FROM objects").fetchone()
        self._vectors = store.read_vectors(self.folder, self.manifest.width, rows)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ShapeIndex:
        """Open an index."""
        return cls(folder)

    def __len__(self) -> int:
        return len(self._vectors)

    def by_words(self, text: str, k: int = 10) -> list[Hit]:
        """Return the k objects that are most like an English description, best first.

        Raises:
            ValueError: there are no words, or k is no count.
            SentenceModelUnavailableError: the sentence model can't be had.
        """
        from vae_qwen3vl.language.sentence_encoder import embed

        if not text.strip():
            raise ValueError("there are no words to search for")
        if strange := unread_letters(text):
            logger.warning("the sentence model reads English: what it makes of %s means little", strange[:20])
        return self.nearest(embed(self._sentences, [text])[0], k)

    def by_shape(self, codes: ShapeCodes, k: int = 10) -> list[Hit]:
        """Return the k objects that are most like a shape, best first; the shape itself too, if it is among them.

        Raises:
            ValueError: the codes are of another tokenizer than the index's, or k is no count.
        """
        if codes.vae_hash != self.manifest.vae_hash:
            raise ValueError(
                f"the codes were made by the VAE {codes.vae_hash[:12]}, the index {self.folder} by "
                f"{self.manifest.vae_hash[:12]}: encode the shape with that one"
            )
        return self.nearest(self.shapes([codes.codes], [codes.coords])[0], k)

    def nearest(self, vector: Tensor, k: int = 10) -> list[Hit]:
        """Return the k objects whose vectors lie nearest to one of length 1, best first. `vector [E]`"""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not len(self):
            return []
        try:
            from usearch.index import MetricKind, search
        except ImportError as error:
            raise ImportError("a search needs usearch: pip install 'vae-qwen3vl[search]'", name="usearch") from error
        asked = vector.cpu().numpy().astype(np.float16)
        found = search(self._vectors, asked, min(k, len(self)), MetricKind.IP, exact=True, threads=1)
        hits = []
        for place, distance in zip(found.keys.tolist(), found.distances.tolist(), strict=True):
            row = self._row("SELECT id, name, source, about FROM objects WHERE place = ?", place)
            if row is not None:  # dropped since the index was opened
                name, called, source, about = row
                hits.append(Hit(id=name, name=called or name, score=1 - distance, source=source, about=about))
        return hits

    def ids(self) -> list[str]:
        """Return the ids of all objects, in the order of their vectors."""
        with self._lock, store.telling(self.folder):
            return [name for (name,) in self._table.execute("SELECT id FROM objects ORDER BY place")]

    def codes_of(self, name: str) -> ShapeCodes:
        """Return the codes of an object by its id, in a cube of side 1 round the origin.

        Raises:
            ValueError: it is not in the index, or the folder of codes is gone.
        """
        row = self._row("SELECT shard FROM objects WHERE id = ?", name)
        if row is None:
            raise ValueError(f"{self.folder} has no object {name!r}")
        folder = self.folder / self.manifest.codes
        made_by = Manifest.load(folder)
        shard = read_shard(folder / row[0], made_by)
        place = shard.ids.index(name)
        return made_by.shape(*shard.object(place), shard.ups[place] if shard.ups else UP_UNSAID)

    def _row(self, ask: str, value: object) -> tuple[str, ...] | None:
        with self._lock, store.telling(self.folder):
            return self._table.execute(ask, (value,)).fetchone()

    @cached_property
    def shapes(self) -> ShapeVectors:
        """What turns codes into vectors of this index."""
        tensors, _ = read_safetensors(self.folder / store.CODEBOOK, "codebook", ("codebook",))
        return ShapeVectors.load(self.folder / store.PROJECTOR, self.folder / store.HEAD, tensors["codebook"])

    @cached_property
    def _sentences(self) -> SentenceEncoder:
        from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder

        return load_sentence_encoder(self.shapes.head.sentence_model)
