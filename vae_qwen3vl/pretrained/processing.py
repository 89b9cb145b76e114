"""The processor as transformers knows processors: chats with meshes in, tensors for the model out.

`Processor3D` writes the words; the tokenizer of shapes (VAE) lives here, and nowhere else: it makes the codes of
meshes, and meshes of codes. It is loaded when a mesh first needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import trimesh
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image
from transformers.utils import cached_file

from sdf_vqvae.codes.pipeline import (
    check_codes,
    decode_codes,
    encode_field,
    field_for,
    load_shape,
    settle_up,
    surface_of,
    up_for,
)
from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.model.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_vae_from_config, save_vae, shipped_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.files import atomic_path, write_json
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.pretrained.folder import VAE, VAE_HASH, Parts, local_folder, parts_of
from vae_qwen3vl.processor import IGNORED_LABEL, Message, Processor3D
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.sequence_3d import joined_coords

Mesh: TypeAlias = str | os.PathLike[str] | trimesh.Trimesh | SparseSDF | ShapeCodes
"""A mesh, field or codes file; a mesh; a field; or codes."""
PROCESSOR_CONFIG = "processor_config.json"
_IMAGES = "preprocessor_config.json"
_HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class ShapeVLProcessor(ProcessorMixin):
    """Writes chats with meshes, images and text as inputs of `ShapeVLForConditionalGeneration`.

    Args:
        tokenizer: the language model's, with a chat template.
        image_processor: the language model's, for images beside meshes.
        vae: the tokenizer of shapes, or what loads it; None where all shapes come as codes.
        vae_hash: its fingerprint, where it is not loaded yet.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any = None,
        vae: SparseSDFVQVAE | Callable[[], SparseSDFVQVAE] | None = None,
        vae_hash: str | None = None,
    ) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self._vae = vae
        self._vae_hash = vae_hash
        self.words = Processor3D(tokenizer, image_processor)

    # -- opening and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        vae: SparseSDFVQVAE | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> ShapeVLProcessor:
        """Open the processor of a model; the tokenizer of shapes is loaded when a mesh first needs it.

        Args:
            pretrained_model_name_or_path: as for the model: a saved folder, a training run, "shipped", or a Hub id.
            vae: instead of the tokenizer of shapes that belongs to it.
            device: where the tokenizer of shapes runs; CUDA where present by default.
            **kwargs: what is said of the Hub; the rest is left alone.

        Raises:
            ValueError: the folder holds no model, or the tokenizer of shapes is another than the model's.
        """
        hub = {name: kwargs[name] for name in _HUB if kwargs.get(name) is not None}
        more = {name: value for name, value in hub.items() if name in ("cache_dir", "local_files_only", "token")}
        parts = parts_of(local_folder(pretrained_model_name_or_path, hub))
        return cls.from_parts(parts, vae=vae, device=device, **more)

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        *,
        vae: SparseSDFVQVAE | None = None,
        device: str | torch.device | None = None,
        **hub: Any,
    ) -> ShapeVLProcessor:
        """Open the processor of a model whose parts lie where `parts` says; all else as for `from_pretrained`."""
        expected = load_projector(parts.projector)[1].vae_hash
        source = os.fspath(parts.words())
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        has_images = cached_file(source, _IMAGES, _raise_exceptions_for_missing_entries=False, **hub) is not None
        images = AutoImageProcessor.from_pretrained(source, **hub) if has_images else None
        load = partial(_load_vae, parts, device) if vae is None else vae
        processor = cls(tokenizer, images, load, expected)
        if vae is not None:
            processor._check_vae(vae)
        return processor

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, *, vae: bool | None = None, **_: Any
    ) -> list[str]:
        """Write tokenizer, chat template, image processor and tokenizer of shapes into a folder.

        Args:
            save_directory: the folder; the model is saved into the same one.
            push_to_hub: not offered: `huggingface_hub.upload_folder` does that.
            vae: write the tokenizer of shapes too; None writes it unless it is the shipped one, which every
                installation has.

        Raises:
            ValueError: the tokenizer of shapes is asked for, and there is none.
        """
        if push_to_hub:
            raise ValueError("save into a folder first, then upload it with huggingface_hub.upload_folder")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
        if vae or (vae is None and self._vae is not None):
            self._save_vae(folder / VAE, even_shipped=bool(vae))
        about = {"processor_class": type(self).__name__, VAE_HASH: self.vae_hash}
        write_json(folder / PROCESSOR_CONFIG, about, indent=2)
        return [str(folder / PROCESSOR_CONFIG)]

    def _save_vae(self, folder: Path, even_shipped: bool) -> None:
        shipped = load_vae_from_config(device="cpu")
        is_shipped = shipped.fingerprint() == self.vae_hash
        if not is_shipped:
            save_vae(self.vae, folder)
        elif even_shipped:  # its files are a quarter as large as what would be written of it
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(shipped_config().with_name(name).read_bytes())

    @property
    def chat_template(self) -> Any:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, value: str) -> None:
        self.tokenizer.chat_template = value
        self.words = Processor3D(self.tokenizer, self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        """What `apply_chat_template` may return."""
        return ["input_ids", "attention_mask", "codes_3d", "coords_3d", "pixel_values", "image_grid_thw"]

    def to_dict(self) -> dict[str, Any]:
        """Return what the processor's file says."""
        return {"processor_class": type(self).__name__, VAE_HASH: self._vae_hash}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.tokenizer).__name__}, vae_hash={self._vae_hash})"

    # -- shapes ------------------------------------------------------------------------------------------------------

    @property
    def vae(self) -> SparseSDFVQVAE:
        """The tokenizer of shapes.

        Raises:
            ValueError: there is none, or it is another than the one that the model was trained with.
        """
        if self._vae is None:
            raise ValueError("this processor has no tokenizer of shapes: give codes, or build it with vae=...")
        if not isinstance(self._vae, SparseSDFVQVAE):
            loaded = self._vae()
            self._check_vae(loaded)
            self._vae = loaded
        return self._vae

    @property
    def vae_hash(self) -> str | None:
        """Fingerprint of the tokenizer of shapes; None where neither it nor its name is known."""
        if self._vae_hash is None and self._vae is not None:
            self._vae_hash = self.vae.fingerprint()
        return self._vae_hash

    def _check_vae(self, vae: SparseSDFVQVAE) -> None:
        if self._vae_hash is not None and self._vae_hash != (here := vae.fingerprint()):
            raise ValueError(
                f"the model reads codes of the VAE {self._vae_hash[:12]}, but this one is {here[:12]}: open the "
                "processor with the vae= that the model was trained with"
            )

    def encode_mesh(self, mesh: Mesh, up: str | None = None) -> ShapeCodes:
        """Return the codes of a mesh; codes, and files of codes, pass as they are.

        Args:
            mesh: what `Mesh` says.
            up: the axis of the source that points up, "auto" or "y or z" (by the shape); None: as files say it,
                meshes and fields in memory stand as they are.

        Raises:
            ValueError: it can't be read or used, or the codes are of another tokenizer.
        """
        path = Path(mesh) if isinstance(mesh, str | os.PathLike) else None
        if path is not None and path.suffix == CODES_SUFFIX:
            mesh = ShapeCodes.load(path)
        if isinstance(mesh, ShapeCodes):
            if up not in (None, mesh.up):
                raise ValueError(f"codes can't be turned: they stand along {mesh.up} of their source, not {up}")
            if mesh.vae_hash != self.vae_hash:
                check_codes(self.vae, mesh)
            return mesh
        shape: Any = mesh if path is None else load_shape(path)
        if not isinstance(shape, trimesh.Trimesh | SparseSDF):
            raise ValueError(
                f"a mesh is a path, trimesh.Trimesh, SparseSDF or ShapeCodes, not {type(shape).__name__}"
            )
        known = None
        if path is not None:
            known = up_for(path, shape, up)
        elif up is not None:
            known = settle_up(Up(axis=up, known_from="as was said"), shape)
        return encode_field(self.vae, field_for(self.vae, shape, up=known))

    def decode_mesh(self, codes: ShapeCodes | str | os.PathLike[str]) -> trimesh.Trimesh:
        """Return the mesh of codes (or of a file of codes), in the units, place and axes of their source."""
        shape = codes if isinstance(codes, ShapeCodes) else ShapeCodes.load(codes)
        return surface_of(self.vae, decode_codes(self.vae, shape), shape)

    # -- chats -------------------------------------------------------------------------------------------------------

    def __call__(self, conversation: Sequence[Any], **kwargs: Any) -> BatchFeature:
        """Encode chats for generation: `apply_chat_template` with what it takes for that."""
        given = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, **kwargs}
        return self.apply_chat_template(conversation, **given)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        return_assistant_tokens_mask: bool = False,
        padding_side: Literal["left", "right"] | None = None,
        up: str | None = None,
        padding: Any = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode a chat, or a batch of chats. Text of users is plain text: it can't hold a template's token.

        Args:
            conversation: messages `{"role", "content"}`, or a list of such lists. Content is text, or a list of
                `{"type": "mesh", "mesh": ...}` (see `Mesh`; with "up" where it is known),
                `{"type": "text", "text": ...}` and, in user turns, `{"type": "image", "image": ...}`.
            add_generation_prompt: end where the assistant's turn begins.
            tokenize: False returns text to look at (a list for a batch), in which `<mesh>` stands for a shape.
            return_dict: False returns `input_ids` alone.
            return_tensors: "pt".
            return_assistant_tokens_mask: also return `assistant_masks` `[B, S]`: 1 where a token is the assistant's.
                Each chat then ends with the assistant's turn.
            padding_side: None means "left", and "right" with the mask.
            up: the axis that points up in meshes that do not say it themselves; see `encode_mesh`.
            padding: rows are always padded to the longest.
            processor_kwargs: more of these arguments, as pipelines of transformers give them.
            **kwargs: what transformers has beside these, off: nothing is cut, and the template is the tokenizer's.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`; `codes_3d` int32 `[M]` and `coords_3d` int32 `[M, 4]` =
            (object, x, y, z) if there are shapes; `pixel_values` and `image_grid_thw` if there are images.

        Raises:
            ValueError: a message is not of this form, or a mesh can't be used.
        """
        more = {**kwargs, **(processor_kwargs or {})}
        padding_side = more.pop("padding_side", padding_side)
        if unknown := sorted(name for name, value in more.items() if value not in (None, False)):
            raise ValueError(f"apply_chat_template does not take {', '.join(unknown)}")
        if return_tensors not in ("pt", "auto", None):
            raise ValueError(f"return_tensors is 'pt' here, not {return_tensors!r}")
        is_batch = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = list(conversation) if is_batch else [conversation]
        if return_assistant_tokens_mask:
            data = self.encode_chats(chats, padding_side=padding_side, up=up)
            data["assistant_masks"] = (data.pop("labels") != IGNORED_LABEL).long()
        else:
            plain, objects = self._without_meshes(chats, up)
            side = padding_side or "left"
            words = self.words(plain, objects=0, padding_side=side, generation_prompt=add_generation_prompt)
            data = {**words, **_joined(objects)}
        if not tokenize:
            rows = [ids[mask.bool()] for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True)]
            texts = [self._visible(row) for row in rows]
            return texts if is_batch else texts[0]
        return BatchFeature(data) if return_dict else data["input_ids"]

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        padding_side: Literal["left", "right"] | None = None,
        up: str | None = None,
    ) -> dict[str, Tensor]:
        """Encode chats that end with the assistant's turn, for training.

        Returns:
            What `apply_chat_template` does, and `labels` `[B, S]`: every token of the assistant's turns, -100
            elsewhere.

        Raises:
            ValueError: a chat ends with another turn, or that turn holds more than text.
        """
        plain, objects = self._without_meshes(chats, up)
        answers = [_answer_of(chat) for chat in plain]
        prompts = [chat[:-1] for chat in plain]
        words = self.words(prompts, answers, objects=0, padding_side=padding_side or "right")
        return {**words, **_joined(objects)}

    def _without_meshes(
        self, chats: Sequence[Sequence[Message]], up: str | None
    ) -> tuple[list[list[Message]], list[ShapeCodes]]:
        """Return chats with placeholders where meshes stand, and the meshes' codes in their order."""
        objects: list[ShapeCodes] = []
        plain: list[list[Message]] = []
        for chat in chats:
            messages: list[Message] = []
            for message in [{"role": "user", "content": chat}] if isinstance(chat, str) else chat:
                content = message.get("content") if isinstance(message, Mapping) else None
                if isinstance(content, Sequence) and not isinstance(content, str):
                    message = {**message, "content": [self._part(part, objects, up) for part in content]}
                messages.append(message)
            plain.append(messages)
        return plain, objects

    def _part(self, part: Any, objects: list[ShapeCodes], up: str | None) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "3d":
            raise ValueError("a shape is given as {'type': 'mesh', 'mesh': ...}")
        if kind == "mesh":
            if part.get("mesh") is None:
                raise ValueError("a content part of type 'mesh' must hold its mesh under the key 'mesh'")
            objects.append(self.encode_mesh(part["mesh"], part.get("up", up)))
            return {"type": "3d"}
        if kind == "image" and isinstance(source := part.get("image", part.get("path", part.get("url"))), str):
            return {"type": "image", "image": load_image(source)}
        return part

    # -- words -------------------------------------------------------------------------------------------------------

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Return the text of each row; placeholders of shapes, and what losses ignore, are no text."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in sequences]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Return the text of one row; see `batch_decode`."""
        row = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        words = [token for token in row if token >= 0]
        return str(self.tokenizer.decode(words, skip_special_tokens=skip_special_tokens, **kwargs))

    def _visible(self, row: Tensor) -> str:
        text, words = "", list[int]()
        for token in row.tolist():
            if token >= 0:
                words.append(token)
                continue
            text += self.tokenizer.decode(words) + "<mesh>"
            words = []
        return text + str(self.tokenizer.decode(words))


def _load_vae(parts: Parts, device: str | torch.device | None) -> SparseSDFVQVAE:
    return parts.load_vae(resolve_device(device))


def _joined(objects: Sequence[ShapeCodes]) -> dict[str, Tensor]:
    if not objects:
        return {}
    return {
        "codes_3d": torch.cat([shape.first for shape in objects]).int(),
        "coords_3d": joined_coords([shape.coords for shape in objects]).int(),
    }


def _answer_of(chat: Sequence[Message]) -> str:
    last: Mapping[str, Any] = chat[-1] if chat else {}
    content = last.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        content = None if None in texts else "".join(map(str, texts))
    if last.get("role") != "assistant" or not isinstance(content, str):
        raise ValueError("a chat to train on must end with the assistant's turn, which holds text alone")
    return content
