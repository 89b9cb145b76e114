"""The program `train` (`vae_qwen3vl/train_finetune.py`): alignment of shapes and words."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from sdf_vqvae.utils.programs import add_run_options
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.config import add_alignment_options, read_alignment_config

ABOUT = """\
Train the projector, and adapters of the language model, on shapes with words.

Data is a folder of cached codes (`vae-qwen3vl encode DATASET -o codes`: by far the fastest) or of distance fields,
which the tokenizer then encodes in every step; train_sdf_dataset where none is named. Settings come from --config
and from flags, which win.

Every run gets its own folder in --output_dir, named after its settings: projector_final.pt and lora_final/ (the
weights that --best_by chooses), train_args.json, objects.json, log.jsonl, tensorboard/, checkpoints/. On Ctrl-C
and SIGTERM the step ends and a checkpoint is written (exit code 130 or 143). `--resume` with the same settings goes
on with a run that was stopped, bit by bit as if it had not been; where there is none it says so. What the console
says, and more, is in logs/ by time and process."""
EXAMPLES = """\
  python vae_qwen3vl/train_finetune.py --dummy_data --dummy_samples 50 --epochs 1 --batch_size 2 --output_dir out
  vae-qwen3vl train --data_dir codes --use_lora --epochs 3 --batch_size 16
  accelerate launch --num_processes 2 --mixed_precision bf16 vae_qwen3vl/train_finetune.py \\
      --config configs/3d_align_train.yaml"""
logger = logging.getLogger(__name__)

LOGS = Path("logs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_alignment_options(parser, leave_out=["output_run"])
    add_run_options(parser, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Train."""
    from sdf_vqvae.utils.progress import waiting
    from sdf_vqvae.utils.runtime import resolve_device, seed_everything
    from vae_qwen3vl.language.default_model import DEFAULT_LM, resolve_vl_model
    from vae_qwen3vl.processor import Processor3D
    from vae_qwen3vl.training.processes import make_accelerator
    from vae_qwen3vl.training.projector_pretraining import ProjectorLesson
    from vae_qwen3vl.training.run_data import alignment_data, cached_codes, check_data
    from vae_qwen3vl.training.run_folder import RunObjects, log_to_files, open_run_folder, run_to_resume
    from vae_qwen3vl.training.starting_model import build_model, settled, tokenizer_of
    from vae_qwen3vl.training.trainer import AlignmentTrainer

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
    with waiting("reading what to train on"):
        data = alignment_data(config, Processor3D.from_pretrained(source), codes, latent_dim=width)
    lesson = ProjectorLesson.of(config, data, accelerator.device)
    logger.info("loading the language model %s", config.vl_model or DEFAULT_LM)
    with waiting("loading the language model"):
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
