"""The model as transformers knows models: opened and saved by folder, trained by its trainers, in its pipelines.

A `Qwen3VLWith3DBranch` does all the work. What this class adds is the codebook, so that inputs are plain codes, and
transformers' conventions: `from_pretrained`, `save_pretrained`, `generate` that returns the prompt too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import atomic_folder, write_json, write_text
from vae_qwen3vl.inputs import merging_arguments
from vae_qwen3vl.language.adapters import load_merged, save_lora
from vae_qwen3vl.language.backbone import VL_CLASSES, check_model_type, without_wrapper
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.pretrained.configuration import ShapeVLConfig
from vae_qwen3vl.pretrained.folder import (
    CODEBOOK,
    CONFIG,
    LANGUAGE_MODEL,
    VAE_HASH,
    Parts,
    local_folder,
    parts_of,
)
from vae_qwen3vl.projector_file import ProjectorDescription, save_projector
from vae_qwen3vl.trained_parts import LORA_NAME, NO_LORA, PROJECTOR_NAME, adapter_missing
from vae_qwen3vl.vae_latent_extractor import codebook, look_up, vae_fingerprint

logger = logging.getLogger(__name__)

_OF_AUTO = ("_from_auto", "_from_pipeline", "trust_remote_code", "code_revision", "adapter_kwargs", "_commit_hash")
"""What the Auto classes hand on that says nothing to us."""
_HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "subfolder")
_LM, _PROJECTOR = "branch.vl_model.", "branch.projector."
_TRAINED = "model.safetensors"
_SAMPLED = 4096


class ShapeVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language model that also reads shapes, as codes.

    Args:
        config: what it is.
        branch: its parts, ready; None builds them with random weights as `config` says.
        table: codebook `[K, D]`; random if None.
        vae_hash: fingerprint of the tokenizer whose codebook it is.
    """

    config_class = ShapeVLConfig
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "mesh")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        config: ShapeVLConfig,
        branch: Qwen3VLWith3DBranch | None = None,
        table: Tensor | None = None,
        vae_hash: str | None = None,
    ) -> None:
        super().__init__(config)
        self.branch = _untrained(config) if branch is None else branch
        base = without_wrapper(self.branch.vl_model)
        config.vl_config = base.config
        config._attn_implementation_internal = base.config._attn_implementation
        if table is None:
            table = torch.randn(config.codebook_size or 1, self.branch.projector.latent_dim)
        if table.ndim != 2 or table.shape[1] != self.branch.projector.latent_dim:
            raise ValueError(
                f"the codebook is {list(table.shape)}, but the projector reads vectors of width "
                f"{self.branch.projector.latent_dim}: they are of different tokenizers"
            )
        config.codebook_size = len(table)
        self.register_buffer("codebook", table.float().to(self.branch.device), persistent=False)
        self.vae_hash = vae_hash
        config.projector = asdict(self.description())
        self.post_init()
        self.all_tied_weights_keys = {
            _LM + target: _LM + source
            for target, source in (getattr(base, "all_tied_weights_keys", None) or {}).items()
        }
        self._saved_as = self._sample() if config.language_model is not None else None

    def init_weights(self) -> None:
        """Do nothing: the parts come with their weights."""

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_branch(
        cls,
        branch: Qwen3VLWith3DBranch,
        *,
        table: Tensor | None = None,
        vae_hash: str | None = None,
        language_model: str | None = None,
    ) -> ShapeVLForConditionalGeneration:
        """Make transformers' model of a `Qwen3VLWith3DBranch`, which both then share.

        Args:
            branch: the model.
            table: codebook `[K, D]`; None takes that of the branch's VAE.
            vae_hash: fingerprint of the tokenizer; None takes that of the branch's VAE.
            language_model: what opens the language model, if a saved folder may name it instead of holding it.

        Raises:
            ValueError: there is neither a codebook nor a VAE.
        """
        if branch.vae_model is not None:
            table = codebook(branch.vae_model).detach() if table is None else table
            vae_hash = vae_hash or vae_fingerprint(branch.vae_model)
        if table is None:
            raise ValueError("the branch has no VAE: give its codebook with table=")
        return cls(ShapeVLConfig(language_model=language_model), branch, table, vae_hash)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: ShapeVLConfig | None = None,
        dtype: torch.dtype | str | None = "auto",
        merge_adapter: bool = False,
        plain_chats: bool = True,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> ShapeVLForConditionalGeneration:
        """Open a model: projector in float32, all of it in evaluation mode.

        Args:
            pretrained_model_name_or_path: folder of `save_pretrained`, folder of a training run, "shipped", or a
                Hub id.
            *args: none.
            config: instead of the folder's.
            dtype: of the language model; "auto" is that of its files.
            merge_adapter: add the adapters into the language model's weights: it answers sooner.
            plain_chats: then keep the weights from before too, for chats without an object; see `load_describer`.
            is_trainable: the adapters learn on.
            **kwargs: for the language model's `from_pretrained` alone: `device_map`, `quantization_config`,
                `attn_implementation` and so on. What is said of the Hub counts for the folder too.

        Raises:
            ValueError: the folder holds no model, or its parts do not belong together.
            LanguageModelUnavailableError: the language model that it names can't be had.
        """
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        for name in _OF_AUTO:
            kwargs.pop(name, None)
        if args or kwargs.pop("output_loading_info", False):
            raise ValueError("the folder is opened whole or not at all: leave output_loading_info and such out")
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        if "torch_dtype" in kwargs:
            dtype = kwargs.pop("torch_dtype")
        folder = local_folder(pretrained_model_name_or_path, hub)
        attention = None if config is None else config._attn_implementation_internal  # as the Auto classes leave it
        if attention is not None:
            kwargs.setdefault("attn_implementation", attention)
        more = {name: hub[name] for name in ("cache_dir", "local_files_only", "token") if name in hub} | kwargs
        model = cls.from_parts(
            parts_of(folder, config),
            dtype=dtype,
            merge_adapter=merge_adapter,
            plain_chats=plain_chats,
            is_trainable=is_trainable,
            **more,
        )
        model.config.name_or_path = model.name_or_path = os.fspath(pretrained_model_name_or_path)
        if adapter is not None:
            model.load_adapter(adapter)
        return model

    @classmethod
    def from_parts(
        cls,
        parts: Parts,
        *,
        dtype: torch.dtype | str | None = "auto",
        merge_adapter: bool = False,
        plain_chats: bool = True,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> ShapeVLForConditionalGeneration:
        """Open a model whose parts lie where `parts` says; all else as for `from_pretrained`."""
        table, here = parts.codebook()
        source = parts.language_model()
        branch = Qwen3VLWith3DBranch(source, latent_dim=table.shape[1], torch_dtype=dtype, **kwargs)
        branch.model_name_or_path = os.fspath(parts.words())  # where its tokenizer is
        about = branch.load_projector(parts.projector, vae_hash=here or None)
        if about.with_lora and parts.lora is None:
            raise adapter_missing(parts.projector)
        named = parts.reference
        if parts.lora is not None and parts.lora != NO_LORA:
            if merge_adapter:
                vl_model = load_merged(branch.vl_model, parts.lora, keep_untouched=plain_chats)
                branch.vl_model, named = vl_model, None
            else:
                branch.load_lora(parts.lora, trainable=is_trainable)
        model = cls(ShapeVLConfig(language_model=named), branch, table, here)
        if (parts.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(parts.folder)
        return model.eval()

    # -- saving ----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        language_model: bool | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        **kwargs: Any,
    ) -> None:
        """Write the model into a folder, each part whole or not at all; the processor writes its own beside them.

        Args:
            save_directory: the folder, made where missing.
            is_main_process: a trainer says whether this process writes. What is trained is then also written as
                `model.safetensors`, by the names it has here, which trainers of transformers read to go on.
            state_dict: the model's, where a trainer has gathered it from several processes.
            language_model: True writes the language model too, False its name alone. None writes the name where it
                was opened by name and its weights are still those, and else all of it.
            push_to_hub: not offered: `huggingface_hub.upload_folder` does that.
            max_shard_size: of the language model's files.
            **kwargs: left alone.

        Raises:
            ValueError: the language model has no name or other weights than what it names, or holds adapters that
                are not the branch's own.
        """
        if push_to_hub:
            raise ValueError("save into a folder first, then upload it with huggingface_hub.upload_folder")
        if is_main_process is False:
            return
        state = self.state_dict() if state_dict is None else state_dict
        self._check_adapters()
        whole = self._written_whole(language_model, state)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # written last: what is stopped in between is no model
        lm_state = {name.removeprefix(_LM): value for name, value in state.items() if name.startswith(_LM)}
        if whole:
            self._save_language_model(folder, lm_state if state_dict is not None else None, max_shard_size)
        else:
            if os.path.isdir(self.config.language_model):
                logger.warning("%s names a folder of this machine: %s", folder, self.config.language_model)
            shutil.rmtree(folder / LANGUAGE_MODEL, ignore_errors=True)
        shutil.rmtree(folder / LORA_NAME, ignore_errors=True)
        save_lora(self.branch.vl_model, folder / LORA_NAME, self.config.language_model, dtype=None, state=lm_state)
        projector = {name.removeprefix(_PROJECTOR): v for name, v in state.items() if name.startswith(_PROJECTOR)}
        description = self.description()
        save_projector(folder / PROJECTOR_NAME, self.branch.projector, description, projector)
        about = {} if self.vae_hash is None else {VAE_HASH: self.vae_hash}
        write_safetensors(folder / CODEBOOK, {"codebook": self.codebook.detach().cpu().contiguous()}, about)
        (folder / _TRAINED).unlink(missing_ok=True)
        if is_main_process:
            learns = {name for name, value in self.named_parameters() if value.requires_grad}
            trained = {name: state[name].detach().cpu().contiguous() for name in state if name in learns}
            write_safetensors(folder / _TRAINED, trained, {"format": "pt"})
        write_text(folder / "generation_config.json", self.generation_config.to_json_string(use_diff=True))
        write_json(folder / CONFIG, self._config_to_save(whole, description), indent=2)

    def _check_adapters(self) -> None:
        """Raise a ValueError if adapters were put on by another hand than the branch's."""
        vl_model = self.branch.vl_model
        if hasattr(vl_model, "peft_config"):
            return
        if any(hasattr(module, "base_layer") for module in vl_model.modules()):
            raise ValueError(
                "the language model holds adapters that peft keeps: save them with the peft model's own "
                "save_pretrained, or add them into the weights first with its merge_and_unload()"
            )

    def _written_whole(self, asked: bool | None, state: Mapping[str, Tensor]) -> bool:
        if asked:
            return True
        if self.config.language_model is None:
            if asked is None:
                return True
            raise ValueError("the language model was not opened by name, so it can't be saved by it: save it whole")
        same = self._sample(state) == self._saved_as
        if not same and asked is False:
            raise ValueError(
                f"the language model's weights are not those of {self.config.language_model} any more: save it whole"
            )
        return not same

    def _save_language_model(self, folder: Path, state: dict[str, Tensor] | None, max_shard_size: int | str) -> None:
        base = without_wrapper(self.branch.vl_model)
        if state is None:
            state = self.branch.vl_model.state_dict()
        with atomic_folder(folder / LANGUAGE_MODEL) as temporary:
            wrapped = base is not self.branch.vl_model
            base.save_pretrained(
                temporary, state_dict=_without_adapters(state) if wrapped else state, max_shard_size=max_shard_size
            )

    def _config_to_save(self, whole: bool, description: ProjectorDescription) -> dict[str, Any]:
        config = self.config.to_dict()
        config |= {"architectures": [type(self).__name__], "projector": asdict(description)}
        config["language_model"] = None if whole else self.config.language_model
        config["vl_config"].pop("_name_or_path", None)  # a place on this machine
        config.pop("_name_or_path", None)
        config.pop("dtype", None)  # each part's files have their own
        return config

    def _sample(self, state: Mapping[str, Tensor] | None = None) -> str:
        """Return a fingerprint of the language model's own weights, from some thousand values of each.

        Quantised weights are left out: they can't be trained.
        """
        given = self.state_dict() if state is None else state
        weights = _without_adapters({n.removeprefix(_LM): v for n, v in given.items() if n.startswith(_LM)})
        digest = hashlib.sha256()
        for name, value in sorted(weights.items()):
            if type(value) in (Tensor, nn.Parameter) and value.is_floating_point() and value.numel():
                digest.update(name.encode())
                step = max(1, value.numel() // _SAMPLED)
                digest.update(value.detach().flatten()[::step].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def description(self) -> ProjectorDescription:
        """Return what the projector is."""
        return self.branch.description(vae_hash=self.vae_hash)

    def check_vae(self, vae_hash: str | None) -> None:
        """Raise a ValueError if a tokenizer of shapes is another than the one whose codes are read."""
        if None not in (vae_hash, self.vae_hash) and vae_hash != self.vae_hash:
            raise ValueError(
                f"{self.name_or_path} was trained on codes of the VAE {str(self.vae_hash)[:12]}, but this VAE is "
                f"{str(vae_hash)[:12]}: give the --vae_config and --vae_ckpt that it was trained with"
            )

    # -- work ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, S]
        attention_mask: Tensor | None = None,  # [B, S]
        labels: Tensor | None = None,  # [B, S]
        codes_3d: Tensor | None = None,  # [M]
        coords_3d: Tensor | None = None,  # [M, 4]
        **kwargs: Any,
    ) -> Any:
        """Run the language model on text, shapes and images, as `ShapeVLProcessor` writes them.

        Args:
            input_ids: with placeholders where shapes stand.
            attention_mask: 1 where a token counts.
            labels: aligned with `input_ids`.
            codes_3d: codes of all objects.
            coords_3d: (object, x, y, z) of each.
            **kwargs: what else `Qwen3VLWith3DBranch.forward` takes.

        Returns:
            The language model's output; `logits [B, S', V]` are over the merged sequence.
        """
        given = _given(kwargs)
        shapes = self._shapes(codes_3d, coords_3d, given)
        return self.branch(input_ids, attention_mask, labels, **shapes, **given)

    def read(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Return hidden states `[B, S, H]` aligned with `input_ids`; arguments as for `forward`, without labels.

        Where a shape stands there is that of its end marker, so that each predicts what follows, as in text.
        """
        names = ("input_ids", "attention_mask")
        given = _given({**dict(zip(names, args, strict=False)), **kwargs})
        shapes = self._shapes(given.pop("codes_3d", None), given.pop("coords_3d", None), given)
        inputs = self.branch.build_inputs(**shapes, **merging_arguments(given))
        read = without_wrapper(self.branch.vl_model).model(**inputs.model_kwargs(), **given)
        hidden = read.last_hidden_state  # [B, S', H]
        places = inputs.slots[..., None].expand(-1, -1, hidden.shape[-1])
        return BaseModelOutputWithPast(last_hidden_state=hidden.gather(1, places))

    @property
    def base_model(self) -> Callable[..., BaseModelOutputWithPast]:
        """What comes before the language model's head: trl computes its losses from that."""
        return self.read

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        codes_3d: Tensor | None = None,
        coords_3d: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate a continuation with the language model's `generate`, and whatever that takes.

        Returns:
            `[B, S + new]`: `input_ids` and what is new behind them, as transformers has it (a row of ids for each
            beam or sample that is returned), or what `return_dict_in_generate` asks for. At most 128 new tokens
            unless something else is said.
        """
        if input_ids is None:
            return self.branch.generate(attention_mask=attention_mask, **kwargs)
        shapes = self._shapes(codes_3d, coords_3d, kwargs)
        out = self.branch.generate(input_ids, attention_mask, **shapes, **kwargs)
        new = out if isinstance(out, Tensor) else out.sequences
        prompt = input_ids.to(new.device).repeat_interleave(len(new) // len(input_ids), dim=0)
        whole = torch.cat([prompt, new], dim=1)
        if isinstance(out, Tensor):
            return whole
        out.sequences = whole
        return out

    def _shapes(self, codes: Tensor | None, coords: Tensor | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the branch takes for codes. Raises a ValueError unless codes and coordinates fit each other."""
        if codes is None:
            return {} if coords is None else {"coords_3d": coords}
        if "feats_3d" in given or "inputs_3d" in given:
            raise ValueError("give shapes as codes_3d or in another form, not both")
        return {"feats_3d": look_up(codes, self.codebook), "coords_3d": coords}

    # -- what transformers asks a model ------------------------------------------------------------------------------

    @property
    def generation_config(self) -> Any:
        """The language model's."""
        return without_wrapper(self.branch.vl_model).generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        if "branch" in self._modules:  # transformers sets one before there is a language model
            without_wrapper(self.branch.vl_model).generation_config = value

    @property
    def hf_device_map(self) -> Any:
        """Where the language model's parts are, if it was opened with a `device_map`."""
        return without_wrapper(self.branch.vl_model).hf_device_map

    def get_input_embeddings(self) -> nn.Module:
        """Return the text embeddings."""
        return self.branch.vl_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text embeddings."""
        self.branch.vl_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return without_wrapper(self.branch.vl_model).get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        without_wrapper(self.branch.vl_model).set_output_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the language model's vocabulary."""
        return self.branch.vl_model.resize_token_embeddings(*args, **kwargs)


def _untrained(config: ShapeVLConfig) -> Qwen3VLWith3DBranch:
    """Return a branch of random weights."""
    if config.vl_config is None or config.projector is None:
        raise ValueError("a model of random weights needs vl_config and projector in its configuration")
    check_model_type(config.vl_config.model_type, "vl_config")
    about = ProjectorDescription(**config.projector)
    vl_model = getattr(transformers, VL_CLASSES[config.vl_config.model_type])._from_config(config.vl_config)
    return Qwen3VLWith3DBranch(
        use_vl_model=vl_model,
        latent_dim=about.latent_dim,
        max_3d_tokens=about.max_3d_tokens,
        use_3d_pos=about.use_3d_pos,
        projector_num_layers=about.num_layers,
        merge=about.merge,
        shape_tokens=about.shape_tokens,
        encoder_layers=about.encoder_layers,
        positions=about.positions,
        truncate_mode=about.truncate_mode,
    )


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say something: peft hands on all that it knows, such as `inputs_embeds=None`."""
    return {name: value for name, value in arguments.items() if value is not None}


def _without_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the language model's own weights, by their own names, out of a state that may be a peft model's."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in state.items()
        if ".lora_" not in name
    }
