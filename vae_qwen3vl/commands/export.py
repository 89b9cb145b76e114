"""The program `export`: a checkpoint that serving engines run without this package, and requests to it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import add_run_options, naming, positive_int, print_json
from sdf_vqvae.utils.progress import waiting
from vae_qwen3vl.commands.options import add_language_options, quiet_transformers

ABOUT = """\
Write a model as a plain Qwen2 or Qwen3 checkpoint, for vLLM, SGLang, llama.cpp or transformers without this package.

--objects tokens (the default) makes every code a word of the vocabulary: an object is a string of tokens. It needs
a projector that reads codes one by one, trained with --merge 1 --positions sequential. --objects prompt_embeds
takes any projector: an object is sent as embeddings, to vLLM alone. With --prompt_of, an exported folder is read
and a request about an object is printed."""
EXAMPLES = (
    "  vae-qwen3vl export plain --projector_ckpt out/projector_final.pt --gguf q8_0\n"
    '  vae-qwen3vl export plain --prompt_of chair.glb --prompt "Which category does it belong to?" > request.json\n'
    "  vllm serve plain --dtype float32\n"
    "  curl -H 'Content-Type: application/json' -d @request.json http://127.0.0.1:8000/v1/chat/completions\n"
    "  vae-qwen3vl export embeds --objects prompt_embeds --projector_ckpt out/projector_final.pt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from vae_qwen3vl.export import DTYPES, GGUF_TYPES, OBJECTS

    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the exported checkpoint: written, or read by --prompt_of"
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument("--objects", choices=OBJECTS, default="tokens", help="how objects enter a prompt (tokens)")
    writing.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights (auto: as the language model is stored)"
    )
    writing.add_argument(
        "--gguf",
        choices=GGUF_TYPES,
        metavar="TYPE",
        help=f"also DIR/model-TYPE.gguf for llama.cpp: {', '.join(GGUF_TYPES)}",
    )
    asking = parser.add_argument_group("asking")
    asking.add_argument(
        "--prompt_of",
        metavar="SHAPE",
        type=Path,
        help="print the request about this object: mesh, field (.npz) or codes (.safetensors)",
    )
    asking.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    asking.add_argument(
        "--completion",
        action="store_true",
        help="the whole prompt as token ids, for /v1/completions, instead of a chat for /v1/chat/completions",
    )
    asking.add_argument(
        "--max_new_tokens", type=positive_int, default=64, metavar="N", help="length of the answer (64)"
    )
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Write the checkpoint, or a request to its server."""
    quiet_transformers(options.verbose)
    if options.prompt_of is not None:
        return _ask(options)
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.export.exported import export_model
    from vae_qwen3vl.export.gguf_file import write_gguf
    from vae_qwen3vl.processor import Processor3D

    vae = load_vae_from_config(options.vae_config, options.vae_ckpt)
    parts = options.vl_model, options.projector_ckpt, options.lora_dir
    model = load_describer(vae, *parts, device=options.device or "cpu", dtype=options.dtype, plain_chats=False)
    tokenizer = Processor3D.from_pretrained(model.model_name_or_path).tokenizer
    plain = export_model(model, tokenizer, options.folder, objects=options.objects)
    written = [options.folder]
    if options.gguf is not None:
        written.append(options.folder / f"model-{options.gguf}.gguf")
        write_gguf(plain, options.folder, written[-1], options.gguf)
    about = {
        "written": [str(path) for path in written],
        "architecture": type(plain).__name__,
        "dtype": str(plain.dtype).removeprefix("torch."),
        "vocabulary": plain.config.vocab_size,
        "objects": options.objects,
    }
    if options.json:
        print_json(about)
    else:
        for path in written:
            print(f"{path}: {about['architecture']}, {about['dtype']}, {about['vocabulary']:,} words")
    return 0


def _ask(options: argparse.Namespace) -> int:
    """Print a request about an object."""
    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.export.exported import PlainExport

    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    exported = PlainExport(options.folder, vae)
    with naming(options.prompt_of):
        if options.prompt_of.suffix == CODES_SUFFIX:
            codes = ShapeCodes.load(options.prompt_of)
        else:
            with waiting(f"encoding {options.prompt_of}"):
                shape = load_shape(options.prompt_of)
                up = up_for(options.prompt_of, shape, options.up)
                codes = encode_field(vae, field_for(vae, shape, threshold_factor=options.threshold_factor, up=up))
        if options.completion:
            ids = exported.prompt_ids(codes, options.prompt)
            body: dict[str, Any] = {"prompt": ids, "temperature": 0, "max_tokens": options.max_new_tokens}
        else:
            body = exported.request(codes, options.prompt, max_tokens=options.max_new_tokens)
    print_json(body, indent=None)
    return 0
