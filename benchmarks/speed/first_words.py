"""How soon words come on a CPU: time to the first token and to 20 words, from cached codes.

python benchmarks/speed/first_words.py --threads 2
python benchmarks/speed/first_words.py --threads 2 --start --name "a fresh process"

The embedded default language model with the shipped projector and adapter, through the model's own `generate`, greedy
and without an early end. One object fills 512 3D tokens, the other is an example mesh with the tokens it has by
default. 20 words are the tokens that 20 English words of captions take. Times are medians of warm runs, and hold
everything from codebook vectors to token ids. The language model computes in the dtype that `describe` would choose
on this machine, and beside it in float32.

With `--start`, how long `vae-qwen3vl describe CODES` takes in a fresh process, from its start to its end, for the
codes of the mug, and where the seconds go: the same steps one after the other in another fresh process. Beside it
`encode` of the mug and `--help`. Files are in the system's cache and modules compiled, after a process that is not
timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.utils.measurements import measuring_parser, write_run

if TYPE_CHECKING:  # a fresh process imports what it times
    from torch import Tensor

    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

ROOT = Path(__file__).resolve().parents[2]
_TOKENS = 512
TWENTY_WORDS = (
    "A small round wooden table with four turned legs, a wide flat top and one narrow drawer below the top."
)


def seconds_to(model: Qwen3VLWith3DBranch, inputs: dict[str, Tensor], tokens: int, repeats: int) -> float:
    """Return the median seconds until so many tokens are there, after a run that is not timed."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        answer = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        times.append(time.perf_counter() - start)
        assert answer.shape[1] == tokens
    return statistics.median(times[1:])


def main() -> None:
    """Measure both objects in each dtype."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--vl_model", help="folder of the embedded default, where it is not in the cache")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs")
    parser.add_argument("--tiny", action="store_true", help="one run of one token: a proof")
    parser.add_argument("--start", action="store_true", help="time fresh processes instead")
    parser.add_argument("--steps_of", metavar="CODES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps_of:
        print(json.dumps(list(steps(options.steps_of))))
        return
    import torch

    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.language.backbone import inference_dtype

    torch.set_num_threads(options.threads)
    if options.start:
        print(write_run(options, {"threads": options.threads, **started(options)}, "a fresh process"))
        return
    vae = load_vae_from_config(None, None, "cpu")
    rows: list[dict[str, Any]] = []
    for dtype in dict.fromkeys([inference_dtype(torch.device("cpu")), torch.float32]):
        model = load_describer(vae, options.vl_model, device="cpu", dtype=dtype)
        with torch.inference_mode():
            for row in measured(model, vae, options):
                rows.append({"dtype": str(dtype).removeprefix("torch."), **row})
                print(json.dumps(rows[-1]), flush=True)
    print(write_run(options, {"threads": options.threads, "rows": rows}, "cpu"))


def measured(
    model: Qwen3VLWith3DBranch, vae: SparseSDFVQVAE, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the times of each object."""
    import torch

    from sdf_vqvae.codes.pipeline import voxelize_for
    from sdf_vqvae.geometry.mesh import load_mesh
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
    from vae_qwen3vl.vae_latent_extractor import extract_3d_latent

    processor = Processor3D.from_pretrained(model.model_name_or_path)
    words = 1 if options.tiny else len(processor.encode_text(TWENTY_WORDS))
    repeats = 1 if options.tiny else options.repeats
    side = vae.config.latent_resolution
    count = _TOKENS - model.projector.shape_tokens
    blocks = torch.cartesian_prod(*[torch.arange(0, side, model.projector.merge)] * 3)[:count]  # a code in each
    full = torch.nn.functional.pad(blocks, (1, 0)).int()
    table = vae.vq.embeddings.weight.detach()
    mug = extract_3d_latent(voxelize_for(vae, load_mesh(ROOT / "examples" / "mug.glb")).to_batch(), vae)
    objects = {"512": (table[: len(full)], full, _TOKENS), "mug": (*mug, model.max_3d_tokens)}
    prompt = processor([model.prompt or DEFAULT_PROMPT])
    for name, (feats, coords, budget) in objects.items():
        model.max_3d_tokens = budget
        inputs = {**prompt, "feats_3d": feats, "coords_3d": coords}
        yield {
            "object": name,
            "tokens_3d": int(model.count_3d_tokens(feats, coords)[0]) - 2,
            "seconds_to_first_token": round(seconds_to(model, inputs, 1, repeats), 3),
            "seconds_to_20_words": round(seconds_to(model, inputs, words, repeats), 3),
            "new_tokens": words,
            "load_before": round(os.getloadavg()[0], 2),
        }


def started(options: argparse.Namespace) -> dict[str, Any]:
    """Return medians of what fresh processes take."""
    from sdf_vqvae.codes.pipeline import encode_field, load_shape, voxelize_for
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    repeats, load = 1 if options.tiny else options.repeats, round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        codes = str(Path(folder) / "mug.safetensors")
        vae = load_vae_from_config(None, None, "cpu")
        encode_field(vae, voxelize_for(vae, load_shape(ROOT / "examples" / "mug.glb"))).save(codes)

        def fresh(*words: str) -> dict[str, Any]:
            times: list[tuple[float, float, str]] = []
            for _ in range(repeats + 1):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, *words], cwd=ROOT, env=environment, check=True, capture_output=True
                )
                wall = time.perf_counter() - start
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                times.append((wall, work, done.stdout.decode()))
            wall, work, said = zip(*times[1:], strict=True)
            return {"seconds": middle(wall), "processor_seconds": middle(work), "said": said}

        commands = {
            "describe CODES": ("describe", codes, "--device", "cpu"),
            "encode MESH": (
                "encode",
                "examples/mug.glb",
                "-o",
                str(Path(folder) / "again.safetensors"),
                "--device",
                "cpu",
            ),
            "--help": ("--help",),
        }
        processes = {name: fresh("-m", "vae_qwen3vl", *words) for name, words in commands.items()}
        runs = [json.loads(text) for text in fresh("benchmarks/speed/first_words.py", "--steps_of", codes)["said"]]
    table = [
        {"step": names[0], "seconds": middle(walls), "processor_seconds": middle(works)}
        for names, walls, works in (zip(*step, strict=True) for step in zip(*runs, strict=True))
    ]
    for row in [*table, *({"step": f"the whole process: {name}", **row} for name, row in processes.items())]:
        print(f"{row['step']:<40} {row['seconds']:>7.2f} s {row['processor_seconds']:>7.2f} CPU s", flush=True)
    for row in processes.values():
        row["said"] = row["said"][0].partition("\n")[0][:80]
    return {"load_before": load, "processes": processes, "steps": table}


def middle(times: Sequence[float]) -> float:
    """Return the median, to milliseconds."""
    return round(statistics.median(times), 3)


def steps(file: str) -> Iterator[tuple[str, float, float]]:
    """Do what `describe CODES` does and yield, for each step, its name, its seconds and those of the processor."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    born = ticks / os.sysconf("SC_CLK_TCK")  # on the clock that CLOCK_MONOTONIC shows
    last = [0.0, 0.0]

    def step(name: str) -> tuple[str, float, float]:
        now = [time.clock_gettime(time.CLOCK_MONOTONIC) - born, time.process_time()]
        row = (name, now[0] - last[0], now[1] - last[1])
        last[:] = now
        return row

    from sdf_vqvae.utils.programs import prepare
    from sdf_vqvae.utils.runtime import without_collector

    prepare()
    with without_collector():
        import torch

    yield step("Python and torch")
    from vae_qwen3vl.commands.options import quiet_transformers
    from vae_qwen3vl.language.backbone import VL_CLASSES, inference_dtype, load_vl_model

    quiet_transformers()
    with without_collector():
        getattr(importlib.import_module("transformers"), VL_CLASSES["qwen2_vl"])
    yield step("import transformers' Qwen2-VL")
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.describer import describe
    from vae_qwen3vl.language.adapters import load_merged
    from vae_qwen3vl.language.default_model import ensure_default_lm
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.trained_parts import shipped_weights

    yield step("import the rest")
    codes = ShapeCodes.load(file)
    vae = load_vae_from_config(None, None, "cpu")
    yield step("codes and tokenizer")
    source = str(ensure_default_lm())
    language = load_vl_model(source, inference_dtype(torch.device("cpu")))
    yield step("weights of the language model")
    model = Qwen3VLWith3DBranch(source, vae_model=vae, use_vl_model=language, max_3d_tokens=512)
    projector, lora = shipped_weights()
    model.load_projector(projector)
    yield step("projector")
    model.vl_model = load_merged(model.vl_model, lora)
    model.eval()
    yield step("adapter")
    describe(model, codes)
    yield step("tokenizer of text, prompt and words")
    describe(model, codes)
    yield step("the same once more")


if __name__ == "__main__":
    main()
