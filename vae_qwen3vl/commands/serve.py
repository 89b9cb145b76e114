"""The program `serve`: an HTTP server in OpenAI's form that answers chats about shapes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sdf_vqvae.commands.options import add_threshold_factor, add_vae_options
from sdf_vqvae.utils.programs import add_run_options
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.commands.options import add_dtype, add_language_options, quiet_transformers

if TYPE_CHECKING:
    from vae_qwen3vl.serving.metrics import Metrics
    from vae_qwen3vl.serving.service import Service

ABOUT = "Answer chats about meshes over HTTP, as OpenAI's interface does; encode and decode them, keep uploads."
EXAMPLES = (
    "  vae-qwen3vl serve\n"
    "  vae-qwen3vl serve --host 0.0.0.0 --port 8000 --api_key_file keys.txt --files_dir uploads\n"
    "  vae-qwen3vl serve --vl_model Qwen/Qwen3-VL-2B-Instruct --projector_ckpt projector_final.pt --max_batch 64\n"
    "  vae-qwen3vl serve --engine ray --replicas 2"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from vae_qwen3vl.serving.settings import ServerSettings, ShapeLimits

    add_options(parser.add_argument_group("the server, and what a request may take"), ServerSettings)
    add_options(parser.add_argument_group("what one mesh may take"), ShapeLimits)
    add_vae_options(parser)
    add_threshold_factor(parser)
    add_language_options(parser)
    add_dtype(parser)
    add_run_options(parser, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Serve."""
    from vae_qwen3vl.serving.settings import ServerSettings, ShapeLimits

    settings = ServerSettings(**given(options, ServerSettings))
    limits = ShapeLimits(**given(options, ShapeLimits))
    quiet_transformers(options.verbose)

    from vae_qwen3vl.serving.server import run

    def load(settings: ServerSettings, metrics: Metrics) -> Service:
        from sdf_vqvae.model.checkpoint import load_vae_from_config
        from vae_qwen3vl.describer import load_describer
        from vae_qwen3vl.serving.service import Service

        vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
        parts = options.vl_model, options.projector_ckpt, options.lora_dir
        model = load_describer(vae, *parts, device=options.device, dtype=options.dtype)
        return Service(model, settings, limits, metrics, threshold_factor=options.threshold_factor)

    run(load, settings, options.device)
    return 0
