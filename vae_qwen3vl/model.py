"""Qwen2-VL or Qwen3-VL with a 3D branch: codes of a shape stand in the chat as tokens.

Puts the parts together: codes (VAE) -> 3D tokens (projector) -> places and positions (layout) -> the language
model's own forward and generate, through transformers' public interface. The VAE serves it from outside: it is
never part of the module's parameters, state, mode or dtype.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_qwen3vl.answer_confidence import Calibration
from vae_qwen3vl.inputs import BranchInputs, merge_inputs, merging_arguments, unpadded
from vae_qwen3vl.language import adapters
from vae_qwen3vl.language.adapted_rows import adapters_in
from vae_qwen3vl.language.backbone import check_model_type, embedding_rms, embedding_table, load_vl_model, name_cache
from vae_qwen3vl.layout import Positions, without_object
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.projector import OverBudget, Projector3D, Tokens3D
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector
from vae_qwen3vl.sequence_3d import beside, object_counts, prepare_3d_sequence_batched
from vae_qwen3vl.vae_latent_extractor import (
    ShapeVAE,
    codebook,
    extract_3d_latent_and_indices,
    vae_fingerprint,
)

logger = logging.getLogger(__name__)


class Qwen3VLWith3DBranch(nn.Module):
    """A vision-language model that also reads shapes.

    Args:
        model_name_or_path: folder or Hub id of a Qwen2-VL or Qwen3-VL checkpoint (its `model_type` decides).
        vae_model: any object with `Encode`, `Decode` and `vq.embeddings`; it is frozen and stays outside the
            module. None if only `feats_3d` and `coords_3d` will be given.
        latent_dim: codebook width; taken from the VAE if there is one.
        max_3d_tokens: 3D tokens an object may have; 0 or less means no limit.
        use_3d_pos: add a position encoding to the projected vectors.
        projector_num_layers: 1 is one Linear, more an MLP.
        torch_dtype: dtype of the language model (float32 if None). The projector stays float32.
        use_vl_model: an already built model to use instead of loading one.
        merge: latent cells per 3D token and axis: 1, 2 or 4.
        shape_tokens: 3D tokens in front that tell of the object as a whole (see `Projector3D`).
        encoder_layers: layers of a transformer that an object's 3D tokens pass first (see `ShapeEncoder`).
        positions: "mrope" gives 3D tokens their block's (z, y, x) on the M-RoPE axes, "sequential" counts.
        truncate_mode: over budget, "pool" averages neighbouring blocks (all of the object is seen), "head" keeps
            the first tokens only.
        freeze_vl: freeze the language model (the projector, and LoRA, train).
        **vl_kwargs: for the language model's `from_pretrained`.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] = "Qwen/Qwen2-VL-2B-Instruct",
        vae_model: ShapeVAE | None = None,
        latent_dim: int = 16,
        max_3d_tokens: int = 2048,
        use_3d_pos: bool = False,
        projector_num_layers: int = 1,
        torch_dtype: torch.dtype | str | None = None,
        use_vl_model: nn.Module | None = None,
        *,
        merge: int = 1,
        shape_tokens: int = 0,
        encoder_layers: int = 0,
        positions: Positions = "mrope",
        truncate_mode: OverBudget = "pool",
        freeze_vl: bool = True,
        **vl_kwargs: Any,
    ) -> None:
        super().__init__()
        if positions not in ("mrope", "sequential"):
            raise ValueError(f"positions must be 'mrope' or 'sequential', not {positions!r}")
        if truncate_mode not in ("pool", "head"):
            raise ValueError(f"truncate_mode must be 'pool' or 'head', not {truncate_mode!r}")
        self.model_name_or_path = os.fspath(model_name_or_path)
        self.max_3d_tokens, self.positions, self.truncate_mode = max_3d_tokens, positions, truncate_mode
        self.prompt: str | None = None
        self.calibration: Calibration | None = None
        self._vae: tuple[ShapeVAE | None] = (None,)
        self.vae_model = vae_model
        if vae_model is not None:
            latent_dim = codebook(vae_model).shape[1]
        vl_model: Any = use_vl_model
        if vl_model is None:
            vl_model = load_vl_model(self.model_name_or_path, torch_dtype, **vl_kwargs)
        check_model_type(vl_model.config.model_type, type(vl_model).__name__)
        if freeze_vl:
            vl_model.requires_grad_(False)
        self.vl_model: Any = vl_model
        table = embedding_table(self.vl_model)
        projector = Projector3D(
            latent_dim,
            table.shape[1],
            projector_num_layers,
            use_3d_pos=use_3d_pos,
            merge=merge,
            shape_tokens=shape_tokens,
            encoder_layers=encoder_layers,
        )
        projector.output_rms.fill_(embedding_rms(table))
        self.projector = projector.to(table.device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "vae_model":  # nn.Module would register it: its weights would join state_dict, train() and to()
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def vae_model(self) -> Any:
        """The frozen VAE (None if there is none). Assigning another one keeps it outside the module."""
        return self._vae[0]

    @vae_model.setter
    def vae_model(self, vae_model: Any) -> None:
        if isinstance(vae_model, nn.Module):
            vae_model.requires_grad_(False).eval()
        self._vae = (vae_model,)

    @property
    def vl_label(self) -> str:
        """The language model's name for files that travel: its Hub id, or its folder's last name."""
        name = self.model_name_or_path
        return os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name

    @property
    def device(self) -> torch.device:
        """Device of the language model's embeddings."""
        return embedding_table(self.vl_model).device

    @property
    def _no_split_modules(self) -> Any:
        """Classes of the language model's layers, where Accelerate looks for what FSDP shards one by one."""
        return getattr(self.vl_model, "_no_split_modules", None)

    def tokens_3d(self, feats: Tensor, coords: Tensor) -> Tokens3D:
        """Project codes `feats [M, D]`, `coords [M, 4]` to at most `max_3d_tokens` tokens an object.

        The tokens' coordinates are on the device of `coords`.
        """
        feats = feats.to(self.projector.output_gain.device, non_blocking=True)
        return self.projector.project(feats, coords, self.max_3d_tokens, self.truncate_mode)

    def count_3d_tokens(self, feats: Tensor, coords: Tensor) -> Tensor:  # [B]
        """Return how many sequence positions each object takes, its two markers included."""
        with torch.no_grad():
            return object_counts(self.tokens_3d(feats, coords).coords) + 2

    def get_3d_embeds(self, feats: Tensor, coords: Tensor, mask_3d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the embedded 3D tokens of a batch of objects, padded to the longest.

        Args:
            feats: `[M, D]`, or `[B, L, D]` with `mask_3d`.
            coords: `[M, 4]`, or `[B, L, 4]`.
            mask_3d: `[B, L]`, True where a row is real.

        Returns:
            `embeds [B, L, H]` and `mask [B, L]`. The markers are not among them.
        """
        tokens = self.tokens_3d(*unpadded(feats, coords, mask_3d))
        batch = int(tokens.coords[-1, 0]) + 1
        there = beside(tokens.coords, tokens.embeds)
        embeds, mask, _ = prepare_3d_sequence_batched(tokens.embeds, there, batch, max_3d_tokens=0)
        return embeds.to(embedding_table(self.vl_model).dtype), mask

    def get_3d_embeds_and_encoding_indices(
        self, inputs_3d: Any, device: str | torch.device | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Encode a batch and return its 3D embeddings and the codes for `vae_model.Decode`.

        Args:
            inputs_3d: dict `sparse_sdf`, `sparse_index`, `batch_idx`.
            device: where the VAE encodes (it is moved there and stays); None leaves it where it is.

        Returns:
            `embeds [B, L, H]`, `mask [B, L]`, and the VAE's codes object.
        """
        feats, coords, encoding_indices = self._encode(inputs_3d, device)
        embeds, mask = self.get_3d_embeds(feats, coords)
        return embeds, mask, encoding_indices

    def _encode(self, inputs_3d: Any, device: str | torch.device | None = None) -> tuple[Tensor, Tensor, Any]:
        if self.vae_model is None:
            raise ValueError("inputs_3d needs a VAE: build the model with vae_model=..., or pass feats_3d/coords_3d")
        return extract_3d_latent_and_indices(inputs_3d, self.vae_model, device)

    def build_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_3d: Any = None,
        feats_3d: Tensor | None = None,
        coords_3d: Tensor | None = None,
        mask_3d: Tensor | None = None,
        *,
        padding_side: Literal["left", "right"] = "right",
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
    ) -> BranchInputs:
        """Merge text and 3D into what the language model reads.

        `input_ids` with placeholders (see `Processor3D`) get object j at the j-th placeholder, row by row. Plain
        `input_ids` get object i in front of row i. Each object becomes a start marker, its tokens, an end marker.

        Places and positions are counted where `input_ids` are: on a CPU, nothing of that waits for a GPU.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`; all tokens count if None.
            labels: `[B, S]`, aligned with `input_ids`.
            inputs_3d: raw batch for the VAE; or else
            feats_3d: codebook vectors `[M, D]` (or `[B, L, D]` with `mask_3d`) and
            coords_3d: `[M, 4]` = (object, x, y, z) (or `[B, L, 4]`).
            mask_3d: `[B, L]` for the padded form.
            padding_side: where the merged sequence is padded.
            image_grid_thw: as for the language model, where the prompt holds images.
            video_grid_thw: likewise for videos.
            mm_token_type_ids: `[B, S]` as for the language model; found from the ids if None.
        """
        device = input_ids.device
        tokens, encoding_indices = self._tokens_of(inputs_3d, feats_3d, coords_3d, mask_3d, device)
        return merge_inputs(
            self.vl_model,
            input_ids,
            torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device),
            None if labels is None else labels.to(device),
            tokens,
            self.projector.markers(),
            positions=self.positions,
            padding_side=padding_side,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=None if mm_token_type_ids is None else mm_token_type_ids.to(device),
            encoding_indices_3d=encoding_indices,
        )

    def _tokens_of(
        self,
        inputs_3d: Any,
        feats_3d: Tensor | None,
        coords_3d: Tensor | None,
        mask_3d: Tensor | None,
        device: torch.device,
    ) -> tuple[Tokens3D, Any]:
        """Return the tokens, their coordinates on `device`, and the VAE's codes object if it was asked."""
        encoding_indices = None
        if inputs_3d is not None:
            if feats_3d is not None or coords_3d is not None:
                raise ValueError("give either inputs_3d, or feats_3d and coords_3d, not both")
            feats_3d, coords_3d, encoding_indices = self._encode(inputs_3d)
        if (feats_3d is None) != (coords_3d is None):
            raise ValueError("feats_3d and coords_3d belong together: give both or neither")
        if feats_3d is None or coords_3d is None:
            tokens = self.projector.no_tokens(device)
        else:
            feats, coords = unpadded(feats_3d, coords_3d, mask_3d)
            tokens = self.tokens_3d(feats, coords.to(device))
        return Tokens3D(embeds=tokens.embeds.to(self.device), coords=tokens.coords.to(device)), encoding_indices

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_3d: Any = None,
        feats_3d: Tensor | None = None,
        coords_3d: Tensor | None = None,
        mask_3d: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model on text and 3D (`build_inputs` says how they are merged).

        In evaluation mode rows without an object are read as without adapters (`adapted_rows.adapters_in`).

        Returns:
            The language model's output (`loss` if there are labels; `logits [B, S', V]` over the merged sequence),
            with `encoding_indices_3d` where `inputs_3d` were given. Without 3D input it reads the text alone.
        """
        shapes = inputs_3d, feats_3d, coords_3d, mask_3d
        inputs = self.build_inputs(input_ids, attention_mask, labels, *shapes, **merging_arguments(kwargs))
        with adapters_in(self.vl_model, True if self.training else _rows_with_objects(input_ids, inputs)):
            outputs = self.vl_model(**inputs.model_kwargs(), labels=inputs.labels, **kwargs)
        if inputs_3d is not None:
            outputs["encoding_indices_3d"] = inputs.encoding_indices_3d
        return outputs

    def forward_with_3d(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `forward` does. Under DDP call the wrapper itself, so that gradients are synchronised."""
        return self.forward(*args, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_3d: Any = None,
        feats_3d: Tensor | None = None,
        coords_3d: Tensor | None = None,
        mask_3d: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate a continuation of text and 3D with the language model's `generate`.

        Returns:
            New token ids only, `[B, new]` (never the prompt), or what `return_dict_in_generate` asks for. At most
            128 new tokens unless `kwargs` say otherwise. Without `input_ids`, all else passes through unchanged.

        Rows without an object are answered as without adapters (`adapted_rows.adapters_in`).

        A later turn on a kept cache passes `past_key_values` with the whole conversation's ids and objects; the
        rows of a batch must have grown by equally many tokens since, for the cache holds their padding.
        """
        if input_ids is None:
            if attention_mask is not None:
                kwargs["attention_mask"] = attention_mask
            return self.vl_model.generate(**name_cache(self.vl_model, kwargs))
        shapes = inputs_3d, feats_3d, coords_3d, mask_3d
        merging = merging_arguments(kwargs)
        # Generation continues from the last slot.
        inputs = self.build_inputs(input_ids, attention_mask, None, *shapes, padding_side="left", **merging)
        if not {"max_new_tokens", "max_length", "generation_config"} & kwargs.keys():
            kwargs["max_new_tokens"] = 128
        with adapters_in(self.vl_model, _rows_with_objects(input_ids, inputs)):
            return self.vl_model.generate(**inputs.model_kwargs(), **name_cache(self.vl_model, kwargs))

    def describe(
        self,
        inputs_3d: Any = None,
        *,
        feats_3d: Tensor | None = None,
        coords_3d: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        processor: Processor3D | None = None,
        max_new_tokens: int = 64,
        **generation: Any,
    ) -> list[str]:
        """Answer a prompt about each object of a batch.

        Args:
            inputs_3d: raw batch for the VAE; or else `feats_3d` and `coords_3d`.
            feats_3d: codebook vectors `[M, D]`.
            coords_3d: `[M, 4]`.
            prompt: one for all objects, or one an object; None takes the prompt the projector was trained with.
            processor: writes the chat; None loads the language model's tokenizer.
            max_new_tokens: length of the answer.
            **generation: for the language model's `generate`; greedy if nothing else is said.
        """
        if inputs_3d is not None:
            feats_3d, coords_3d, _ = self._encode(inputs_3d)
        if feats_3d is None or coords_3d is None:
            raise ValueError("describe needs a shape: pass inputs_3d, or feats_3d and coords_3d")
        objects = len(object_counts(coords_3d))
        prompt = prompt or self.prompt or DEFAULT_PROMPT
        prompts = [prompt] * objects if isinstance(prompt, str) else list(prompt)
        if len(prompts) != objects:
            raise ValueError(f"{len(prompts)} prompts for {objects} objects: give one, or one an object")
        processor = processor or Processor3D.from_pretrained(self.model_name_or_path)
        generation = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        answers = self.generate(**processor(prompts), feats_3d=feats_3d, coords_3d=coords_3d, **generation)
        return processor.decode(answers)

    def description(self, prompt: str | None = None, vae_hash: str | None = None) -> ProjectorDescription:
        """Return what the projector is, as it is written into its file."""
        if self.vae_model is not None:
            vae_hash = vae_fingerprint(self.vae_model)
        projector = self.projector
        return ProjectorDescription(
            latent_dim=projector.latent_dim,
            hidden_size=projector.hidden_size,
            num_layers=projector.num_layers,
            merge=projector.merge,
            shape_tokens=projector.shape_tokens,
            encoder_layers=projector.encoder_layers,
            use_3d_pos=projector.use_3d_pos,
            pos_mode=projector.pos_mode,
            max_coord=projector.max_coord,
            positions=self.positions,
            max_3d_tokens=self.max_3d_tokens,
            truncate_mode=self.truncate_mode,
            prompt=prompt or self.prompt,
            vae_hash=vae_hash,
            vl_model=self.vl_label,
            with_lora=hasattr(self.vl_model, "peft_config"),
        )

    def save_projector(
        self, path: str | os.PathLike[str], prompt: str | None = None, vae_hash: str | None = None
    ) -> None:
        """Write the trained 3D part (`.safetensors`, or `.pt` as a torch state dict) with its description.

        Args:
            path: file to write.
            prompt: the prompt it was trained with.
            vae_hash: fingerprint of the VAE behind cached codes, where the model holds no VAE itself.
        """
        save_projector(path, self.projector, self.description(prompt, vae_hash))

    def load_projector(
        self, path: str | os.PathLike[str], verify_vae: bool = True, *, vae_hash: str | None = None
    ) -> ProjectorDescription:
        """Replace the projector by the one in a file, whatever its shape, and take over its settings.

        Layers, merge, positions, budget and prompt come from the file.

        Args:
            path: of `save_projector`.
            verify_vae: compare the VAE that it was trained with and the one whose codes it will read.
            vae_hash: fingerprint of the VAE behind cached codes, where the model holds no VAE itself.

        Raises:
            ValueError: it was made for another language-model width or (unless `verify_vae=False`) other codes.
        """
        projector, description = load_projector(path)
        table = embedding_table(self.vl_model)
        if description.hidden_size != table.shape[1]:
            raise ValueError(
                f"{path} was trained for a language model of width {description.hidden_size} "
                f"({description.vl_model}), but {self.model_name_or_path} has width {table.shape[1]}"
            )
        if self.vae_model is not None:
            vae_hash = vae_fingerprint(self.vae_model)
        if vae_hash is not None and verify_vae:
            trained_on, here = description.vae_hash, vae_hash
            if trained_on is not None and trained_on != here:
                raise ValueError(
                    f"{path} was trained on codes of the VAE {trained_on[:12]}, but this VAE is {here[:12]}: load "
                    "the VAE it was trained with (for the shipped one, leave --vae_config and --vae_ckpt out), or "
                    "train one for this VAE with train_finetune.py (or pass verify_vae=False if encoder and codebook "
                    "are the same)"
                )
        self.projector = projector.to(table.device)
        self.positions, self.max_3d_tokens = description.positions, description.max_3d_tokens
        self.truncate_mode, self.prompt = description.truncate_mode, description.prompt
        logger.info("loaded a projector of %d layers, merge %d, from %s", projector.num_layers, projector.merge, path)
        return description

    def add_lora(self, r: int = 8, alpha: int = 32, dropout: float = 0.05, targets: str = "attention") -> None:
        """Put trainable LoRA adapters on the language model's text layers; `adapters.TARGETS` has the `targets`."""
        self.vl_model = adapters.add_lora(self.vl_model, r, alpha, dropout, targets)

    def save_lora(self, folder: str | os.PathLike[str]) -> None:
        """Write the LoRA adapters, if there are any, as a peft folder in bfloat16."""
        adapters.save_lora(self.vl_model, folder, self.vl_label)

    def load_lora(
        self, folder: str | os.PathLike[str], trainable: bool = False, *, dropout: float | None = None
    ) -> None:
        """Load LoRA adapters from a peft folder; every tensor must fit. `dropout` replaces that of the folder."""
        self.vl_model = adapters.load_lora(self.vl_model, folder, trainable, dropout=dropout)


def _rows_with_objects(input_ids: Tensor, inputs: BranchInputs) -> Tensor:  # [B], bool
    """Return which rows have an object; plain ids have one each, in front, where there are any."""
    there = ~without_object(input_ids).cpu()
    return there if bool(there.any()) else torch.full_like(there, len(inputs.tokens_3d.coords) > 0)
