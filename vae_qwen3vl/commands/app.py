"""The program `app`: the page in the browser."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.utils.programs import add_run_options, positive_int
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.commands.options import add_dtype, add_language_options, quiet_transformers

ABOUT = (
    "Open a page in the browser: drop a mesh, see its codes, read and ask about it, see it rebuilt. "
    "Everything runs on this machine; the page asks no other."
)
EXAMPLES = (
    "  vae-qwen3vl app                                  # then open http://127.0.0.1:7860\n"
    "  vae-qwen3vl app --open --examples my_meshes\n"
    "  vae-qwen3vl app --host 0.0.0.0 --port 8080       # whoever reaches this machine may use it"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from vae_qwen3vl.serving.settings import ScanLimits, ShapeLimits

    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to listen on (7860); 0 takes a free one"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--examples", metavar="FOLDER", type=Path, help="meshes to offer (default: five of our own)")
    parser.add_argument(
        "--max_upload_mb", type=positive_int, default=64, metavar="N", help="refuse larger uploads (64)"
    )
    parser.add_argument(
        "--max_new_tokens", type=positive_int, default=160, metavar="N", help="length of an answer (160)"
    )
    parser.add_argument(
        "--index", metavar="INDEX", type=Path, help="show like objects of an index (`vae-qwen3vl index`)"
    )
    add_options(parser.add_argument_group("what one mesh may take"), ShapeLimits)
    add_options(parser.add_argument_group("what one scan may take"), ScanLimits)
    add_vae_options(parser)
    add_language_options(parser)
    add_dtype(parser)
    add_run_options(parser, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Serve until it is interrupted."""
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.progress import waiting
    from sdf_vqvae.utils.runtime import keep_memory_level, resolve_device
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.generation.engine import Engine
    from vae_qwen3vl.page.app import make_app
    from vae_qwen3vl.page.hosting import address_of, example_meshes, listen, serve
    from vae_qwen3vl.page.workbench import Limits, Workbench
    from vae_qwen3vl.processor import Processor3D
    from vae_qwen3vl.search.shape_index import ShapeIndex
    from vae_qwen3vl.serving.settings import ScanLimits, ShapeLimits
    from vae_qwen3vl.serving.shapes import ShapeReader

    keep_memory_level()
    limits = ShapeLimits(**given(options, ShapeLimits))
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(listen(options.host, options.port))  # a taken port should not cost a minute
        examples = example_meshes(options.examples)
        index = None if options.index is None else ShapeIndex.open(options.index)
        quiet_transformers(options.verbose)
        target = resolve_device(options.device)
        vae = load_vae_from_config(options.vae_config, options.vae_ckpt, target)
        reader = ShapeReader(vae, limits, ScanLimits(**given(options, ScanLimits)))
        stack.callback(reader.close)
        parts = options.vl_model, options.projector_ckpt, options.lora_dir
        model = load_describer(vae, *parts, device=target, dtype=options.dtype)
        engine = Engine(model, Processor3D.from_pretrained(model.model_name_or_path))
        engine.start()
        stack.callback(engine.close, finish=False)
        asked = Limits(faces=limits.max_faces, tokens=options.max_new_tokens)
        bench = Workbench(vae, engine, asked, reader=reader, index=index)
        with waiting("building the page"):
            app = make_app(bench, examples, max_upload_mb=options.max_upload_mb)
        reader.wait_until_ready()
        print(f"The page is at {address_of(socket)} (Ctrl+C ends it)", flush=True)
        serve(app, socket, open_browser=options.open, verbose=options.verbose)
    return 0
