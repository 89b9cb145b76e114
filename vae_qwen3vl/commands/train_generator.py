"""The program `train-generator`: codes with captions in, a generator for `create` and `complete` out."""

from __future__ import annotations

import argparse
import logging

from sdf_vqvae.utils.programs import add_run_options
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.training.generator_config import GeneratorTraining

ABOUT = """\
Train a generator: words in, codes out. `create` and `complete` make meshes with it.

Data is a folder of cached codes with captions: `vae-qwen3vl encode MESHES -o codes` makes one of a folder of meshes
whose metadata.csv has captions. A few hundred objects of one kind teach it that kind on a CPU in hours; thousands of
many kinds want a GPU. Settings come from --config and from flags, which win.

The run folder gets the generator (averaged weights as int8, both networks within 14 MiB at the default sizes),
train_args.json, objects.json, log.jsonl, tensorboard/ and checkpoints/. What to look at in log.jsonl: `bits` of the
objects kept apart (an upper bound on their description's length; lower is better) should fall, and stay below
`bits_other_words`; where it rises again the data is learned by heart: fewer epochs, or more dropout. On Ctrl-C and
SIGTERM the step ends and a checkpoint is written (exit code 130 or 143); the same command with --resume goes on, bit
by bit as if it had not been stopped."""
EXAMPLES = """\
  vae-qwen3vl encode my_meshes -o codes
  vae-qwen3vl train-generator --data_dir codes --output_dir my_generator --max_seconds 3600
  vae-qwen3vl create "a wooden stool" -o stool.glb --generator my_generator
  vae-qwen3vl train-generator --config configs/creation/generator.yaml --data_dir codes --resume
  accelerate launch --num_processes 2 --mixed_precision bf16 -m vae_qwen3vl train-generator --data_dir codes"""
logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--config", metavar="YAML", help="file of settings; flags win over it")
    add_options(parser, GeneratorTraining, overrides=True)
    # The folder of codes may stand in the file.
    next(action for action in parser._actions if action.dest == "data_dir").required = False
    add_run_options(parser, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Train."""
    config = GeneratorTraining.of(options.config, given(options, GeneratorTraining))

    from sdf_vqvae.utils.progress import waiting
    from sdf_vqvae.utils.runtime import resolve_device, seed_everything
    from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder
    from vae_qwen3vl.training.generator_data import generator_data
    from vae_qwen3vl.training.generator_trainer import GeneratorTrainer, new_generator
    from vae_qwen3vl.training.processes import make_accelerator

    accelerator = make_accelerator(cpu=resolve_device(options.device).type == "cpu")
    quiet_transformers(options.verbose)
    with waiting("reading what to train on"):
        data = generator_data(config)
    with waiting("reading the captions"):
        with accelerator.main_process_first():  # the first one fetches the sentence model
            encoder = load_sentence_encoder(config.sentence_model, device=accelerator.device)
        words = data.words(encoder)
    seed_everything(config.seed)  # the same new weights in every process
    generator = new_generator(config, data, int(encoder.network.config.hidden_size))
    seed_everything(config.seed + accelerator.process_index)
    trainer = GeneratorTrainer(generator, config, data, words, accelerator)
    logger.info("%d objects to train on, %d kept apart", len(data.names), len(data.val_names))
    trainer.run()
    if accelerator.is_main_process:
        print(trainer.folder)
    accelerator.end_training()
    return 128 + trainer.stopping.signal if trainer.stopping.signal else 0
