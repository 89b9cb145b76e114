"""What a run is made of, as its settings say: devices, tokenizer, model, and the projector's first lesson."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vae_qwen3vl.config import AlignmentConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.utils.data import Dataset

    from sdf_vqvae.codes.folder import CodeFolder
    from vae_qwen3vl.data.splits import AlignmentData
    from vae_qwen3vl.language.sentence_encoder import SentenceEncoder
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

_DUMMY_WIDTH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectorLesson:
    """What the projector learns alone, opened before a run has a folder: whatever is wrong shows then."""

    config: AlignmentConfig
    train: Dataset[Any]
    val: Dataset[Any] | None
    codebook: Tensor
    encoder: SentenceEncoder

    @classmethod
    def of(cls, config: AlignmentConfig, data: AlignmentData, device: torch.device) -> ProjectorLesson | None:
        """Return the lesson that the settings ask for, None if they ask for none.

        Raises:
            ValueError: the data is no folder of cached codes, or the sentence model can't be had.
        """
        from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder

        if not config.pretrain_epochs:
            return None
        if data.captioned is None or data.codebook is None:
            raise ValueError(
                "pretrain_epochs needs cached codes: vae-qwen3vl encode DATASET -o codes, then --data_dir codes"
            )
        encoder = load_sentence_encoder(device=device)
        return cls(config=config, train=data.captioned, val=data.val, codebook=data.codebook, encoder=encoder)

    def __call__(
        self, model: Qwen3VLWith3DBranch, folder: Path, accelerator: Accelerator, vae_hash: str | None
    ) -> None:
        """Give the model the taught projector; the first process teaches it, unless the folder has it already."""
        from vae_qwen3vl.training.first_lesson import pretrain_projector
        from vae_qwen3vl.training.run_folder import PRETRAINED

        path = folder / PRETRAINED
        if accelerator.is_main_process and not path.is_file():
            pretrain_projector(
                model,
                self.train,
                self.val,
                self.encoder,
                self.config.pretrain_epochs,
                codebook=self.codebook,
                folder=folder,
                device=accelerator.device,
                num_workers=self.config.num_workers,
                seed=self.config.seed,
            )
            model.save_projector(path, prompt=self.config.prompt, vae_hash=vae_hash)
        accelerator.wait_for_everyone()
        model.load_projector(path, vae_hash=vae_hash)


def make_accelerator(*, cpu: bool) -> Accelerator:
    """Return devices and processes; bfloat16 on CUDA unless `accelerate launch` says otherwise."""
    import os

    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install 'vae-qwen3vl[language]'") from error
    # The default of `accelerate launch` leaves weights out of all processes but the first; see sharding.py.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or ("no" if cpu else "bf16")
    return Accelerator(cpu=cpu, mixed_precision="no" if cpu else precision)


def tokenizer_of(
    config: AlignmentConfig, codes: CodeFolder | None, accelerator: Accelerator
) -> tuple[Any, int, str | None]:
    """Return the tokenizer, or None where cached codes or random objects need none; its code width; its fingerprint.

    Raises:
        ValueError: the cached codes are of another tokenizer than the one that the settings name.
    """
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    named = config.vae_config is not None or config.vae_ckpt is not None
    if not named and (config.dummy_data or codes is not None):
        if codes is None:
            return None, _DUMMY_WIDTH, None
        return None, codes.codebook.shape[1], codes.manifest.vae_hash
    vae = load_vae_from_config(config.vae_config, config.vae_ckpt, accelerator.device)
    if codes is not None and codes.manifest.vae_hash != vae.fingerprint():
        raise ValueError(
            f"data_dir: the codes in {config.data_dir} are of the VAE {codes.manifest.vae_hash[:12]}, but vae_config "
            f"and vae_ckpt name {vae.fingerprint()[:12]}: encode the dataset again, or leave both out"
        )
    return vae, vae.vq.embeddings.weight.shape[1], vae.fingerprint()


def build_model(
    config: AlignmentConfig, source: str, vae: Any, width: int, device: torch.device, *, vae_hash: str | None = None
) -> Qwen3VLWith3DBranch:
    """Return the 3D branch as the settings say, with new projector and adapters or those to start from.

    Raises:
        ValueError: what is to be started from doesn't fit the settings, the language model or the tokenizer.
    """
    from vae_qwen3vl.language.backbone import compile_layers
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.training.starting_weights import parts_to_start_from, start_projector

    model = Qwen3VLWith3DBranch(
        source,
        vae_model=vae,
        latent_dim=width,
        torch_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        **config.model_settings(),
    )
    projector, lora = parts_to_start_from(config)
    if projector is not None:
        start_projector(model, projector, config, vae_hash)
    if lora is not None:
        model.load_lora(lora, trainable=True, dropout=config.lora_dropout)
    elif config.use_lora:
        alpha = config.lora_alpha or 2 * config.lora_r
        model.add_lora(config.lora_r, alpha, config.lora_dropout, config.lora_targets)
    if config.compile_layers:
        compile_layers(model.vl_model)
    if config.use_gradient_checkpointing:
        model.vl_model.gradient_checkpointing_enable({"use_reentrant": False})
    return model
