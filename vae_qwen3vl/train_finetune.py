r"""Train the projector, and adapters of the language model, on shapes with words.

    python vae_qwen3vl/train_finetune.py --dummy_data --dummy_samples 50 --epochs 1 --batch_size 2 --output_dir out
    python vae_qwen3vl/train_finetune.py --data_dir codes --use_lora --epochs 3 --batch_size 16
    accelerate launch --num_processes 2 --mixed_precision bf16 vae_qwen3vl/train_finetune.py \
        --config configs/3d_align_train.yaml

Data is a folder of cached codes (`vae-qwen3vl encode DATASET -o codes`: by far the fastest) or of distance fields,
which the tokenizer then encodes in every step; train_sdf_dataset where none is named. Settings come from --config
and from flags, which win.

Every run gets its own folder in --output_dir, named after its settings: projector_final.pt and lora_final/ (the
weights that --best_by chooses), train_args.json, objects.json, log.jsonl, tensorboard/, checkpoints/. On Ctrl-C
and SIGTERM the step ends and a checkpoint is written (exit code 130 or 143). `--resume` with the same settings goes
on with a run that was stopped, bit by bit as if it had not been; where there is none it says so. What the console
says, and more, is in logs/ by time and process.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vae_qwen3vl.config import AlignmentConfig, add_alignment_options, read_alignment_config
from vae_qwen3vl.programs import add_run_options, add_version, quiet_transformers, run_program

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.utils.data import Dataset

    from vae_qwen3vl.align_training import AlignmentData
    from vae_qwen3vl.code_folder import CodeFolder
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.sentence_similarity import SentenceEncoder

logger = logging.getLogger(__name__)

LOGS = Path("logs")
_DUMMY_WIDTH = 16


def make_parser() -> argparse.ArgumentParser:
    """Return the parser: every setting is a flag."""
    parser = argparse.ArgumentParser(
        prog="train_finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    add_alignment_options(parser, leave_out=["output_run"])
    add_run_options(parser, json_output=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program("train_finetune", work, make_parser().parse_args(argv))


def work(options: argparse.Namespace) -> int:
    """Train."""
    from sdf_vqvae.runtime import resolve_device, seed_everything
    from vae_qwen3vl.align_data import alignment_data, cached_codes, check_data
    from vae_qwen3vl.align_training import AlignmentTrainer
    from vae_qwen3vl.default_lm import DEFAULT_LM, resolve_vl_model
    from vae_qwen3vl.processor import Processor3D
    from vae_qwen3vl.run_files import RunObjects, log_to_files, open_run_folder, run_to_resume
    from vae_qwen3vl.starting_weights import settled

    config = settled(read_alignment_config(options))
    check_data(config)
    earlier = run_to_resume(config)
    accelerator = make_accelerator(cpu=resolve_device(options.device).type == "cpu")
    log_to_files(LOGS, accelerator, verbose=options.verbose)
    quiet_transformers(options.verbose)
    seed_everything(config.seed)  # the same new weights in every process
    codes = cached_codes(config)
    vae, width, vae_hash = tokenizer_of(config, codes, accelerator)
    source = str(resolve_vl_model(config.vl_model))
    logger.info("reading what to train on")
    data = alignment_data(config, Processor3D.from_pretrained(source), codes, latent_dim=width)
    lesson = ProjectorLesson.of(config, data, accelerator.device)
    logger.info("loading the language model %s", config.vl_model or DEFAULT_LM)
    model = build_model(config, source, vae, width, accelerator.device, vae_hash=vae_hash)
    objects = RunObjects(train=tuple(data.names), val=tuple(data.val_names))
    folder = open_run_folder(config, accelerator, objects, earlier)
    logger.info("%d objects to train on, results in %s", len(data.lengths), folder)
    if lesson is not None:
        lesson(model, folder, accelerator, vae_hash)
    seed_everything(config.seed + accelerator.process_index)
    trainer = AlignmentTrainer(model, config, data, folder, accelerator, vae_hash=vae_hash)
    trainer.run()
    if accelerator.is_main_process:
        print(folder)
    accelerator.end_training()
    return 128 + trainer.stopping.signal if trainer.stopping.signal else 0


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
        from vae_qwen3vl.sentence_similarity import load_sentence_encoder

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
        from vae_qwen3vl.projector_pretraining import pretrain_projector
        from vae_qwen3vl.run_files import PRETRAINED

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
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.starting_weights import parts_to_start_from, start_projector
    from vae_qwen3vl.vl_backbone import compile_layers

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


if __name__ == "__main__":
    sys.exit(main())
