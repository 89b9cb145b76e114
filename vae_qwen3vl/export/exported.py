"""An exported checkpoint: writing it, and asking a server of it about an object.

The folder is a plain Qwen2 or Qwen3 checkpoint with its tokenizer, and beside it in `shapes/` the projector that it
was made with, from which requests are written. An object enters as tokens of the vocabulary, or as embeddings.
"""

from __future__ import annotations

import base64
import copy
import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sdf_vqvae.codes.shape_codes import ShapeCodes, check_codes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.files import atomic_folder
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.export.plain_model import plain_model
from vae_qwen3vl.export.shape_vocabulary import (
    SHAPE_START,
    ShapeVocabulary,
    add_shape_tokens,
    in_order,
    unfit_for_vocabulary,
)
from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook, codebook_vectors

logger = logging.getLogger(__name__)

Objects = Literal["tokens", "prompt_embeds"]
PROJECTOR = Path("shapes", "projector.safetensors")
"""In a folder of its own: engines take every .safetensors file beside config.json for the model's."""
_ALL_SORTS_OF_TEXT = "They're 12345 words,\n\n  isn't it? DON'T (naïve) Cafe\u0301\t<|code_1|>_x  "
_TABLE = "model.embed_tokens.weight"


@waiting("writing the plain model")
def export_model(
    model: Qwen3VLWith3DBranch,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    objects: Objects = "tokens",
) -> Any:
    """Write a model as a plain checkpoint, and return the plain model.

    Args:
        model: adapters merged, with its VAE, and in the dtype that is to be written.
        tokenizer: the language model's; it stays as it is.
        folder: made; an earlier export there is replaced.
        objects: "tokens" makes every code a vocabulary entry; "prompt_embeds" leaves the vocabulary as it is.

    Raises:
        ValueError: the projector's tokens can't be vocabulary entries, or something else lies in the folder.
    """
    target = Path(folder)
    if target.exists() and not (target / PROJECTOR).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there and is no earlier export: name a folder that is new or empty")
    about = model.description()
    tokenizer = copy.deepcopy(tokenizer)
    if objects == "tokens":
        if reasons := unfit_for_vocabulary(about):
            raise ValueError(
                f"this projector's tokens can't be entries of a vocabulary ({'; '.join(reasons)}): train one with "
                "--merge 1 --positions sequential, or export with --objects prompt_embeds"
            )
        plain = plain_model(model.vl_model, _new_rows(model, tokenizer))
    else:
        if about.positions != "sequential":
            logger.warning(
                "the projector was trained with positions %s, but engines count them: answers will differ from this "
                "package's (docs/export.md says how much); train with --positions sequential for equal ones",
                about.positions,
            )
        plain = plain_model(model.vl_model)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # a text model's own may be those of its family
        setattr(plain.config, name, getattr(tokenizer, name))
    with atomic_folder(target) as work:
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        _check_tokenizer(tokenizer, work)
        (work / PROJECTOR).parent.mkdir()
        model.save_projector(work / PROJECTOR)
        for file in work.glob("*.safetensors"):  # safetensors makes files that their owner alone can read
            shutil.copymode(work / "config.json", file)
    return plain


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise a ValueError if engines would split text in another way: of some families transformers has its own."""
    from transformers import AutoTokenizer

    there = AutoTokenizer.from_pretrained(folder)
    if there(_ALL_SORTS_OF_TEXT)["input_ids"] != tokenizer(_ALL_SORTS_OF_TEXT)["input_ids"]:
        raise ValueError(
            f"transformers reads the tokenizer of such a checkpoint as a {type(there).__name__}, which splits text "
            "otherwise than the language model's own: export a language model whose tokenizer is its family's"
        )


@torch.no_grad()
def _new_rows(model: Qwen3VLWith3DBranch, tokenizer: Any) -> dict[int, Tensor]:
    """Add shape tokens to a tokenizer and return the vector of each by its id."""
    table = codebook(model.vae_model)  # [K, D]
    add_shape_tokens(tokenizer, len(table))
    vocabulary = ShapeVocabulary(tokenizer)
    vectors = model.projector(table.to(model.projector.output_gain))  # [K, H]
    start, end = model.projector.markers()
    return dict(zip([vocabulary.start, vocabulary.end, *vocabulary.codes], [start, end, *vectors], strict=True))


class PlainExport:
    """Requests about objects to a server that runs an exported checkpoint.

    Args:
        folder: of `export_model`.
        vae: the tokenizer of shapes; needed where objects enter as embeddings.

    Raises:
        ValueError: the folder is no export.
    """

    def __init__(self, folder: str | os.PathLike[str], vae: SparseSDFVQVAE | None = None) -> None:
        from transformers import AutoConfig

        self.folder, self.vae = Path(folder), vae
        if not (self.folder / PROJECTOR).is_file():
            raise ValueError(
                f"{folder} is no exported checkpoint: it has no {PROJECTOR} (vae-qwen3vl export makes one)"
            )
        self.projector, self.about = load_projector(self.folder / PROJECTOR)
        self.processor = Processor3D.from_pretrained(self.folder)
        self.context: int = AutoConfig.from_pretrained(self.folder).max_position_embeddings
        self.vocabulary: ShapeVocabulary | None = None
        if SHAPE_START in self.processor.tokenizer.get_added_vocab():
            self.vocabulary = ShapeVocabulary(self.processor.tokenizer)

    def request(self, shape: ShapeCodes, prompt: str | None = None, *, max_tokens: int = 64) -> dict[str, Any]:
        """Return the body of a request to `/v1/chat/completions`, greedy.

        Args:
            shape: the object.
            prompt: the question; None is what the projector was trained with.
            max_tokens: length of the answer.

        Raises:
            ValueError: the object does not fit, or the question spells a special token.
        """
        asked = self._asked(prompt)
        if self.vocabulary is None:
            content: Any = [prompt_embeds_part(self.content_embeds(shape, asked))]
        else:
            if (
                self.processor.encode_text(asked)
                != self.processor.tokenizer(asked, add_special_tokens=False)["input_ids"]
            ):
                raise ValueError(
                    "the question spells a special token, which a chat's text can't keep apart: say it otherwise"
                )
            content = self.vocabulary.text(self._codes(shape)) + asked
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": max_tokens}
        if "enable_thinking" in self.processor.tokenizer.chat_template:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body

    def prompt_ids(self, shape: ShapeCodes, prompt: str | None = None) -> list[int]:
        """Return the whole prompt as token ids, for engines and `/v1/completions`; arguments as for `request`."""
        if self.vocabulary is None:
            raise ValueError(f"in {self.folder} objects are no tokens but embeddings: they have no ids")
        asked = self._asked(prompt)
        block = self.vocabulary.ids(self._codes(shape))
        ids: list[int] = self.processor(asked)["input_ids"][0].tolist()
        place = ids.index(PLACEHOLDER_3D)
        return [*ids[:place], *block, *ids[place + 1 :]]

    @torch.no_grad()
    def content_embeds(self, shape: ShapeCodes, prompt: str) -> Tensor:  # [T, H]
        """Return the embeddings of a user's turn without the template's tokens: start marker, object, end, question.

        The question is among them since servers would put a line break between an object and a text that follows.
        """
        if self.vae is None:
            raise ValueError(f"in {self.folder} objects are embeddings of codebook vectors: give the VAE")
        self._check_vae(shape)
        check_codes(self.vae, shape)
        feats = codebook_vectors(shape.codes, self.vae).cpu()  # [M, D]
        about = self.about
        tokens = self.projector.project(
            feats, joined_coords([shape.coords]), about.max_3d_tokens, about.truncate_mode
        )
        start, end = self.projector.markers()[:, None]  # [1, H] each
        text = embedding_rows(self.folder, self.processor.encode_text(prompt))
        return torch.cat([part.to(text.dtype) for part in (start, tokens.embeds, end, text)])

    def _asked(self, prompt: str | None) -> str:
        return self.about.prompt or DEFAULT_PROMPT if prompt is None else prompt

    def _codes(self, shape: ShapeCodes) -> list[int]:
        """Return an object's codes in order, once it is clear that they can be read."""
        self._check_vae(shape)
        codes, most = in_order(shape), self.about.max_3d_tokens
        if 0 < most < len(codes):
            if self.about.truncate_mode == "pool":
                raise ValueError(
                    f"the object has {len(codes):,} codes, but the projector was trained to read at most {most:,} "
                    "and to average neighbors beyond, which no token says: train with a larger --max_3d_tokens, or "
                    "export with --objects prompt_embeds"
                )
            codes = codes[:most]
        if len(codes) + 2 > self.context:
            raise ValueError(
                f"the object has {len(codes):,} codes, more than the {self.context:,} positions of the language model"
            )
        return codes

    def _check_vae(self, shape: ShapeCodes) -> None:
        trained_on = self.about.vae_hash
        if trained_on not in (None, shape.vae_hash):
            raise ValueError(
                f"the codes were made by the VAE {shape.vae_hash[:12]}, but the export reads those of "
                f"{trained_on[:12]}: give the --vae_config and --vae_ckpt of its training"
            )


def prompt_embeds_part(embeds: Tensor) -> dict[str, str]:
    """Return embeddings `[T, H]` as vLLM's content part (its server runs with `--enable-prompt-embeds`)."""
    file = io.BytesIO()
    torch.save(embeds.contiguous(), file)
    return {"type": "prompt_embeds", "data": base64.b64encode(file.getvalue()).decode()}


def embedding_rows(folder: Path, ids: list[int]) -> Tensor:  # [n, H]
    """Return rows of a checkpoint's embedding table; nothing else of it is read."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    file = parse_json(index.read_bytes())["weight_map"][_TABLE] if index.is_file() else "model.safetensors"
    with safe_open(folder / file, "pt") as tensors:
        table = tensors.get_slice(_TABLE)
        return torch.cat([table[:0], *(table[number : number + 1] for number in ids)])
