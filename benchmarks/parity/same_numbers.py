"""Do two versions of this project compute the same? Every number that a program writes, down to the last digit.

    cd TREE && python benchmarks/parity/same_numbers.py record OUT --data DATA     in each version's folder
    python benchmarks/parity/same_numbers.py compare OUT_BEFORE OUT_AFTER          a row a question; exit code 1: no

    cd TREE && python benchmarks/parity/same_numbers.py stop RUNS --record OUT     runs that were stopped, and
    cd LATER_TREE && python benchmarks/parity/same_numbers.py resume RUNS OUT      what a later version makes of them

The tree is the folder that the program is started in, wherever this file lies. Only documented commands, the names
of `sdf_vqvae.__all__` and `vae_qwen3vl.__all__`, README's snippets and the files that programs write are used, so
the insides may be anything. DATA holds `shapes/` (a pack), `ct/`, and where there is one `parity/` (a fixture of the
original system). Everything runs in OUT/work with relative paths, each program on one thread of the CPU, `--jobs` of
them at a time. A recording that broke off goes on with the same command.

Files are equal if their bytes are. Left out is only what is a time, a place or a peak of memory: `KEYS`, `TABLES`
and `WORDS` below; archives (.npz, .pt) hold times themselves and are compared by their arrays. Shards of codes are
written by the clock and are compared by object.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TREE = Path.cwd()
KEYS = {
    *("seconds", "seconds_drawing", "objects_per_second", "stages", "processing_time_sec", "processing_date"),
    *("peak_bytes", "command", "file_size_mb"),
}
"""Keys of JSON files, and columns of tables: times, memory, the command line with the tree's place in it, and the
size on disk of files that hold times."""
TABLES = re.compile(rb"<h2>Seconds an object</h2>.*?</table>", re.DOTALL)
"""Of reports."""
WORDS = re.compile(rb" *[0-9.]+ s\b")
"""Of text logs."""
NOT_COMPARED = re.compile(r"(^|/)(\.|tensorboard/|codes-\d+\.safetensors$|rank_0\.log$)|\.lock$")
PROMPT = "Describe this 3D shape in one sentence:"
TESTED, TRAINED, MIRRORED, VALIDATED, LOGITS, EVALUATED, STEPS = 50, 40, 12, 6, 10, 20, 20

ALL_DIGITS = """import importlib.machinery as machinery
execute = machinery.SourceFileLoader.exec_module
def exec_module(self, module):
    if module.__name__.split('.')[0] in ('sdf_vqvae', 'vae_qwen3vl'):
        module.round = lambda x, n=None: float(x) if n == 6 else round(x, n)
    execute(self, module)
machinery.SourceFileLoader.exec_module = exec_module
"""
"""A `sitecustomize.py`: logs of training round to six decimals, but in the trainers' processes here they keep all."""

Answers = dict[str, Any]
left_out: set[str] = set()
places = {str(TREE): "TREE"}
"""Folders whose absolute paths some files name, and what stands for them."""


# -- digests -----------------------------------------------------------------------------------------------------


def without_places(content: bytes) -> bytes:
    """Return a text with the names of `places` instead of their paths."""
    for path, name in sorted(places.items(), reverse=True):  # the longer first, where one lies in the other
        if path.encode() in content:
            left_out.add(f"the path of {name}")
            content = content.replace(path.encode(), name.encode())
    return content


def sha(content: bytes) -> str:
    """Return the start of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def array_digest(array: Any) -> str:
    """Return type, shape and digest of a NumPy array or a tensor."""
    if hasattr(array, "detach"):
        import torch

        array = array.detach().cpu().contiguous()
        raw = array.view(torch.uint8).numpy() if array.ndim else array.reshape(1).view(torch.uint8).numpy()
        return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)} {sha(raw.tobytes())}"
    return f"{array.dtype} {list(array.shape)} {sha(array.tobytes())}"


def without_times(value: Any) -> Any:
    """Return plain values without `KEYS`."""
    if isinstance(value, Mapping):
        left_out.update(KEYS & value.keys())
        return {key: without_times(one) for key, one in value.items() if key not in KEYS}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def text_digest(content: bytes, parse: Callable[[str], Any]) -> str:
    """Return the digest of bytes, or where they hold times, of what they hold besides."""
    found = parse(content.decode())
    kept = without_times(found)
    return sha(content) if kept == found else "without times: " + sha(json.dumps(kept).encode())


def json_lines(text: str) -> list[Any]:
    """Read JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def csv_rows(text: str) -> list[Any]:
    """Read a table."""
    return list(csv.DictReader(io.StringIO(text)))


def file_digest(path: Path) -> Any:
    """Return what of a file has to stay the same."""
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            return {name: array_digest(arrays[name]) for name in arrays.files}
    if path.suffix == ".pt":
        import torch

        return tensors_digest(torch.load(path, map_location="cpu", weights_only=True))
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".csv", ".txt", ".html", ".log"):
        content = without_places(content)
    readers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".jsonl": json_lines, ".csv": csv_rows}
    if path.suffix in readers:
        return text_digest(content, readers[path.suffix])
    for suffix, times in ((".html", TABLES), (".log", WORDS)):
        if path.suffix == suffix and times.search(content):
            left_out.add(f"{suffix}: {times.pattern.decode()}")
            return "without times: " + sha(times.sub(b"", content))
    return sha(content)


def tensors_digest(value: Any) -> Any:
    """Return the digests of all tensors in nested values."""
    if isinstance(value, Mapping):
        return {str(key): tensors_digest(one) for key, one in value.items()}
    return array_digest(value) if hasattr(value, "detach") else repr(value)


def folder_digest(folder: Path) -> Answers:
    """Return what of each file below a folder has to stay the same."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not NOT_COMPARED.search(name):
            found[name] = file_digest(path)
    if not found:
        raise SystemExit(f"{folder} holds nothing to compare")
    return found


# -- programs ----------------------------------------------------------------------------------------------------


class Programs:
    """Runs the tree's programs in a work folder, each on one thread; `console/` keeps what they print."""

    slots = threading.Semaphore(1)
    """How many run at a time, over all labels."""

    def __init__(self, work: Path, label: str = "") -> None:
        self.work = work
        places[str(work)] = "WORK"
        self.label = label
        self.number = 0
        for name in ("console", "all_digits"):
            (work / name).mkdir(parents=True, exist_ok=True)
        (work / "all_digits" / "sitecustomize.py").write_text(ALL_DIGITS)

    def environment(self, *, all_digits: bool = False) -> dict[str, str]:
        """Return the environment of a program: this tree, one thread, no GPU, no hub."""
        one = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        paths = [
            str(TREE),
            *([str(self.work / "all_digits")] if all_digits else []),
            os.environ.get("PYTHONPATH", ""),
        ]
        fixed = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONHASHSEED": "0",
            "CUDA_VISIBLE_DEVICES": "",
        }
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return {**os.environ, **dict.fromkeys(one, "1"), **fixed, **offline}

    def command(self, *arguments: str) -> list[str]:
        """Return a command line: a script of the tree by its path, or a module by its name."""
        first, *rest = arguments
        door = [str(TREE / first)] if first.endswith(".py") else ["-m", first]
        return [sys.executable, *door, *rest]

    def __call__(self, *arguments: str, all_digits: bool = False) -> str:
        """Run a program to its end and return what it prints."""
        self.number += 1
        with self.slots:
            start = time.monotonic()
            done = subprocess.run(
                self.command(*arguments),
                cwd=self.work,
                env=self.environment(all_digits=all_digits),
                capture_output=True,
                text=True,
                check=False,
            )
        console = self.work / "console" / f"{self.label}_{self.number:02d}_{Path(arguments[0]).stem}.txt"
        console.write_text(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        print(f"  {time.monotonic() - start:6.1f} s  {' '.join(arguments)[:100]}", flush=True)
        if done.returncode:
            raise SystemExit(f"exit code {done.returncode}: {' '.join(arguments)}\n{done.stderr[-3000:]}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a program with `--json` and return what it prints, without times."""
        return without_times(json.loads(without_places(self(*arguments, "--json").encode())))

    def job(self, module: str, subcommand: str) -> list[str]:
        """Return how a job is called that is a module of its own in one version and a subcommand in the other."""
        alone = (TREE / "vae_qwen3vl" / f"{module}.py").is_file()
        return [f"vae_qwen3vl.{module}"] if alone else ["vae_qwen3vl", subcommand]


# -- inputs ------------------------------------------------------------------------------------------------------


def prepare(data: Path, work: Path) -> None:
    """Write what the programs start from: a small pack, configurations, and the tree's examples.

    The pack has a few objects of each split, spread over all of its sources.
    """
    if (work / "examples").exists():
        return
    rows = [json.loads(line) for line in (data / "shapes" / "meshes.jsonl").read_text().splitlines()]
    chosen: list[dict[str, Any]] = []
    for split, count in (("test", TESTED), ("train", TRAINED), ("val", VALIDATED)):
        own = [row for row in rows if row["split"] == split and (split == "test" or row["faces"] <= 4000)]
        chosen += [own[number * len(own) // count] for number in range(count)]
    (work / "pack").mkdir()
    with (data / "shapes" / "meshes.bin").open("rb") as meshes, (work / "pack" / "meshes.bin").open("wb") as few:
        for row in chosen:
            meshes.seek(row["offset"])
            row["offset"] = few.tell()
            few.write(meshes.read(row["size"]))
    (work / "pack" / "meshes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (work / "data").symlink_to(data.resolve())
    (work / "configs").mkdir()
    for name, config in small_tokenizers().items():
        (work / "configs" / f"{name}.json").write_text(json.dumps(config, indent=1))
    shutil.copytree(TREE / "examples", work / "examples", ignore=shutil.ignore_patterns("*.py", "__pycache__"))


def tokenizer_config(**arguments: Any) -> dict[str, Any]:
    """Return the file of a small tokenizer on a grid of 64^3, and how it is trained."""
    field = {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 64}
    model = {
        **{"architecture": "residual", "resolution": 16, "model_channels": 64, "level_channels": [16]},
        **{"level_blocks": [1], "predict_occupancy": True, "latent_channels": 8, "num_blocks": 2},
        **{"num_head_channels": 32, "mlp_ratio": 2.0, "window_size": 4, "num_embeddings": 64, "use_ema_update": True},
        **{"vq_decay": 0.9, "field": field, "input_band": 1.75, **arguments.pop("model", {})},
    }
    dataset = {"name": "Meshes", "args": {"resolution": 64, "rotation": 0.3, "stretch": 0.5, "echo": 2, "buffer": 8}}
    trainer = {
        **{"training_stage": 2, "batch_size_per_gpu": 4, "batch_split": 2, "num_workers": 0},
        **{"lr_scheduler": {"name": "WarmupThenScheduler", "args": {"warmup_steps": 3}}, "ema_rate": [0.9, 0.99]},
        **{"grad_clip": {"name": "AdaptiveGradClipper", "args": {"max_norm": 1.0, "clip_percentile": 90}}},
        **{"bypass_share": 0.3, "slope_weight": 1.0, "object_balance": 0.5, "loss_type": "l1", "i_print": 5},
        **{"i_log": 1, "i_sample": 10, "i_save": 5, "held_out": 2, **arguments.pop("trainer", {})},
    }
    return {
        "models": {"vqvae": {"name": "SparseSDFVQVAE", "args": {k: v for k, v in model.items() if v is not None}}},
        "dataset": arguments.pop("dataset", dataset),
        "trainer": {"name": "SparseSDFVQVAETrainer", "args": trainer},
    }


def small_tokenizers() -> dict[str, dict[str, Any]]:
    """Return the tokenizers that are trained: the first for 20 steps, the others, of all other kinds, for 4."""
    fields = {"name": "SparseSDF", "args": {"resolution": 64, "symmetries": True}}
    plain: dict[str, Any] = {"use_ema_update": False, "quantizer": "simvq", "rotation_trick": True}
    pooled = {
        **{"architecture": "original", "resolution": 8, "level_channels": [8, 16, 16], "level_blocks": None},
        **{"predict_occupancy": False, "attn_mode": "full", "pool_counts_zero": False},
    }
    grid = {"quantizer": "fsq", "fsq_levels": [4, 4, 4], "latent_channels": 3, "use_ema_update": False}
    return {
        "ema": tokenizer_config(),
        "cosine": tokenizer_config(
            model={"quantizer": "cosine", "use_ema_update": False}, trainer={"loss_type": "huber"}
        ),
        "simvq": tokenizer_config(model=plain, trainer={"loss_type": "l1_l2", "object_balance": 0.0}),
        "fsq": tokenizer_config(model=grid, trainer={"loss_type": "mse", "ema_rate": []}, dataset=fields),
        "pooled": tokenizer_config(model=pooled, trainer={"slope_weight": 0.0}),
    }


def train_tokenizer(name: str, output: str, steps: int, *more: str, data: str = "pack") -> list[str]:
    """Return the command that trains a small tokenizer."""
    flags = ["--vae_config", f"configs/{name}.json", "--data_dir", data, "--output_dir", output]
    return ["scripts/train_tokenizer.py", *flags, "--max_steps", str(steps), "--device", "cpu", *more]


def train_alignment(output: str, *more: str) -> list[str]:
    """Return the command that trains projector and adapters with every part of the objective."""
    flags = {
        **{"data_dir": "codes", "mirrored_dir": "mirrored", "plain_text": "plain.jsonl", "plain_text_share": "0.2"},
        **{"output_dir": output, "max_3d_tokens": "96", "truncate_mode": "pool", "projector_layers": "2"},
        **{"shape_tokens": "4", "lora_r": "4", "lora_targets": "all", "lora_dropout": "0.05", "merge": "4"},
        **{"caption_share": "0.5", "kind_weights": "organ=3,category=2", "shift_cells": "2", "drop_cells": "0.2"},
        **{"turn_degrees": "5", "contrastive_weight": "0.5", "pretrain_epochs": "1", "projector_share": "0.3"},
        **{"gradient_accumulation_steps": "2", "epochs": "3", "batch_size": "2", "val_every": "10"},
        **{"log_every": "1", "save_every": "5", "seed": "7", "epoch_limits": "ldraw=2", "lr": "1e-3"},
    }
    line = [part for key, value in flags.items() for part in (f"--{key}", value)]
    return ["vae_qwen3vl/train_finetune.py", *line, "--use_lora", "--use_3d_pos", "--device", "cpu", *more]


# -- answers -----------------------------------------------------------------------------------------------------


def steps_of(log: Path, least: int) -> list[Any]:
    """Return the records of a run's log, with all digits; there are records of that many steps."""
    records = without_times(json_lines(log.read_text()))
    steps = {record["step"] for record in records if record["kind"] == "train"}
    if len(steps) < least:
        raise SystemExit(f"{log} tells of {len(steps)} steps, fewer than {least}")
    return records


def run_digest(folder: Path, least: int) -> Answers:
    """Return losses with all digits, and digests of everything that a training run leaves (its latest checkpoint)."""
    found = folder_digest(folder)
    latest = max((name for name in found if name.startswith("checkpoints/")), key=lambda name: name.split("/")[1])
    last = latest.split("/")[1]
    kept = {k: v for k, v in found.items() if not k.startswith("checkpoints/") or k.split("/")[1] == last}
    del kept["log.jsonl"]
    kept.pop("train_args.json", None)  # the tokenizer's names the tree, the alignment's the output folder
    return {"log": steps_of(folder / "log.jsonl", least), "files": kept}


def look(work: Path, fixture: Path | None) -> Answers:
    """Return, by the library's own names, codes by object, logits, words, and the fixture's numbers."""
    import torch

    import sdf_vqvae
    import vae_qwen3vl
    from vae_qwen3vl.describer import load_describer  # as README has it

    for package in (sdf_vqvae, vae_qwen3vl):
        if TREE not in Path(str(package.__file__)).parents:
            raise SystemExit(f"{package.__name__} comes from {package.__file__}, not from {TREE}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    answers: Answers = {}
    for name, mirrored in (("codes", False), ("mirrored", True)):
        folder = vae_qwen3vl.CodeFolder(work / name, mirrored=mirrored)
        answers[name] = {
            one: {"codes": array_digest(folder[one][0]), "coords": array_digest(folder[one][1])}
            for one in sorted(folder)
        }
    folder = vae_qwen3vl.CodeFolder(work / "codes")
    tested = [row["sha256"] for row in folder.table() if row["split"] == "test"]
    vae = sdf_vqvae.load_vae_from_config()
    model = load_describer(vae, device="cpu", dtype=torch.float32)
    processor = vae_qwen3vl.Processor3D.from_pretrained(model.model_name_or_path)
    answers["logits"], answers["greedy"] = {}, {}
    for one in tested[:: TESTED // LOGITS]:
        codes, coords = folder[one]
        feats = folder.codebook[codes.long()]
        places = torch.nn.functional.pad(coords.int(), (1, 0))
        with torch.no_grad():
            out = model.forward_with_3d(**processor(PROMPT), feats_3d=feats, coords_3d=places)
        logits = out.logits
        assert logits.dtype == torch.float32
        answers["logits"][one] = {"logits": array_digest(logits), "max": float(logits.max()).hex()}
        (said,) = model.describe(feats_3d=feats, coords_3d=places, processor=processor, max_new_tokens=16)
        answers["greedy"][one] = said
    answers["fingerprint"] = vae.fingerprint()
    if fixture is not None:
        answers["fixture"] = fixture_numbers(fixture, work / "original")
    return answers


def fixture_numbers(fixture: Path, output: Path) -> Answers:
    """Return codes and field of the original system's fixture, and leave its weights as an original's checkpoint."""
    import zlib

    import numpy as np
    import torch

    import sdf_vqvae

    arguments = json.loads((fixture / "args.json").read_text())
    vae = sdf_vqvae.SparseSDFVQVAE(**arguments).eval()
    for name, parameter in vae.named_parameters():
        draws = np.random.default_rng(zlib.crc32(name.encode()))
        values = draws.standard_normal(parameter.numel(), dtype=np.float32).reshape(tuple(parameter.shape))
        if values.ndim == 1:
            values = 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values = values * 1.4 / np.sqrt(values.size / values.shape[0])
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
    with np.load(fixture / "fixture.npz", allow_pickle=False) as arrays:
        batch = {k: torch.from_numpy(arrays[k]) for k in ("sparse_sdf", "sparse_index", "batch_idx")}
    with torch.no_grad():
        codes = vae.Encode(batch)
        field = vae.Decode(codes)
    output.mkdir()
    torch.save({"vae": vae.state_dict()}, output / "vae.pt")
    (output / "vae.json").write_text(json.dumps({"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": arguments}}}))
    return {
        "codes": array_digest(codes.feats),
        "coords": array_digest(codes.coords),
        "field": array_digest(field.feats),
        "field_coords": array_digest(field.coords),
    }


def codes_of_pack(run: Programs) -> Iterable[tuple[str, Any]]:
    """Encode the small pack; make questions about its objects."""
    run("vae_qwen3vl", "encode", "pack", "-o", "codes", "--device", "cpu", "--json")
    yield "a table beside the codes", folder_digest(run.work / "codes")
    questions = run.job("make_questions", "make-questions")
    for split, name in (("train", "conversations"), ("test", "conversations_test")):
        run(*questions, "pack", "-o", f"codes/{name}.jsonl", "--split", split, "--languages", "en")
        yield f"f questions of objects, split {split}", file_digest(run.work / "codes" / f"{name}.jsonl")


def mirror_images(run: Programs) -> Iterable[tuple[str, Any]]:
    """Encode mirror images of the first training objects."""
    flags = ["--mirror", "--split", "train", "--max_samples", str(MIRRORED), "--device", "cpu", "--json"]
    run("vae_qwen3vl", "encode", "pack", "-o", "mirrored", *flags)
    yield "a table beside the mirror images", folder_digest(run.work / "mirrored")


def plain_texts(run: Programs) -> Iterable[tuple[str, Any]]:
    """Write texts without an object."""
    flags = ["-o", "plain.jsonl", "--count", "6", "--batch_size", "8", "--device", "cpu"]
    run(*run.job("make_plain_text", "make-plain-text"), *flags)
    yield "f texts without an object", file_digest(run.work / "plain.jsonl")


def numbers_of_library(run: Programs) -> Iterable[tuple[str, Any]]:
    """Look at codes and logits in a process of its own."""
    fixture = run.work / "data" / "parity"
    arguments = ["look", str(run.work), *([str(fixture)] if fixture.is_dir() else [])]
    with run.slots:
        looking = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            cwd=TREE,
            env=run.environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    answers = json.loads(looking.stdout.splitlines()[-1])
    yield f"a codes of {TESTED} held-out objects, and {TRAINED + VALIDATED} others", answers["codes"]
    yield f"a codes of {MIRRORED} mirror images", answers["mirrored"]
    yield f"b logits of {LOGITS} objects, float32", answers["logits"]
    yield f"b words of {LOGITS} objects, greedy", answers["greedy"]
    yield "a fingerprint of the shipped tokenizer", answers["fingerprint"]
    if "fixture" in answers:
        yield "a codes and field of the original's fixture", answers["fixture"]
        flags = ["original/vae.pt", "--vae_config", "original/vae.json", "-o", "original/converted"]
        said = run.json("vae_qwen3vl", "checkpoint", *flags)
        yield "e an original checkpoint, converted", [said, folder_digest(run.work / "original" / "converted")]


def single_shapes(run: Programs) -> Iterable[tuple[str, Any]]:
    """Encode, decode and describe single shapes."""
    shapes = [("chair", "glb"), ("lamp", "ply"), ("mug", "obj"), ("plane", "stl"), ("rocket", "off")]
    (run.work / "single").mkdir()
    said: Answers = {}
    for name, suffix in shapes:
        flags = ["-o", f"single/{name}.safetensors", "--device", "cpu"]
        said[name] = [run.json("vae_qwen3vl", "encode", f"examples/{name}.glb", *flags)]
        coarse = ["--voxel_resolution", "128"] if suffix == "obj" else []
        flags = ["-o", f"single/{name}.{suffix}", "--device", "cpu", *coarse]
        said[name].append(run.json("vae_qwen3vl", "decode", f"single/{name}.safetensors", *flags))
    yield "e codes files and decoded meshes of 5 shapes", folder_digest(run.work / "single")
    yield "e what encode and decode say of them", said
    flags = ["--device", "cpu", "--max_new_tokens", "12"]
    yield (
        "b what describe says",
        [
            run.json("vae_qwen3vl", "describe", "single/chair.safetensors", *flags),
            run.json("vae_qwen3vl", "describe", "examples/plane.glb", "--prompt", "What is it?", *flags),
        ],
    )


def fields(run: Programs) -> Iterable[tuple[str, Any]]:
    """Voxelize a folder of meshes, signed and unsigned, and convert the one to the other."""
    start = [
        "dataset_toolkits/sdf_voxelize.py",
        "--format",
        "folder",
        "--input_dir",
        "examples",
        "--max_workers",
        "1",
    ]
    for name, *more in (("fields",), ("unsigned", "--unsigned")):
        run(*start, "--output_dir", name, "--resolutions", "64", *more, "--device", "cpu", "--json")
        yield f"f voxelized examples: {name}", folder_digest(run.work / name)
    converted = run.json("vae_qwen3vl", "convert", "unsigned", "-o", "converted", "--vae_config", "configs/ema.json")
    yield "e fields converted", [converted, folder_digest(run.work / "converted")]


def scans(run: Programs) -> Iterable[tuple[str, Any]]:
    """Read a CT in two layouts."""
    start = ["dataset_toolkits/process_m3d_seg_format.py", "--num_workers", "1", "--default_resolution", "128"]
    start += ["--compute_sdf", "--sdf_resolution", "48", "--organs", "liver,spleen,kidney_left,aorta,vertebrae_L1"]
    files = ["--image", "data/ct/nifti/ct.nii.gz", "--label", "data/ct/nifti/organs.nii.gz"]
    run(*start, *files, "--output_dir", "ct_windows")
    yield "f CT: windows, masks, organs of NIfTI", folder_digest(run.work / "ct_windows")
    run(*start, "--data_root", "data/ct/m3d_seg", "--use_mask", "--output_dir", "ct_masks")
    yield "f CT: organs of the M3D-Seg layout", folder_digest(run.work / "ct_masks")


def tokenizer_training(run: Programs) -> Iterable[tuple[str, Any]]:
    """Train a small tokenizer, all of it, then its codebook and its decoder alone."""
    run(*train_tokenizer("ema", "tok_ema", STEPS), all_digits=True)
    yield f"c tokenizer training: ema, {STEPS} steps", run_digest(run.work / "tok_ema", STEPS)
    for stage in ("1", "3"):
        start = ["--training_stage", stage, "--pretrained_vae_path", "tok_ema/model.safetensors"]
        run(*train_tokenizer("ema", f"tok_stage{stage}", 4, *start), all_digits=True)
        yield f"c tokenizer training: stage {stage}, 4 steps", run_digest(run.work / f"tok_stage{stage}", 4)


def other_tokenizers(run: Programs) -> Iterable[tuple[str, Any]]:
    """Train small tokenizers of the other kinds."""
    for name in OTHER_TOKENIZERS:
        data = "fields" if name == "fsq" else "pack"
        run(*train_tokenizer(name, f"tok_{name}", 4, data=data), all_digits=True)
        yield f"c tokenizer training: {name}, 4 steps", run_digest(run.work / f"tok_{name}", 4)


def only_run(folder: Path) -> Path:
    """Return the one run in a folder."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def alignment_training(run: Programs) -> Iterable[tuple[str, Any]]:
    """Train projector and adapters on codes, with the whole objective."""
    run(*train_alignment("align"), all_digits=True)
    yield f"c alignment training: the whole objective, {STEPS} steps", run_digest(only_run(run.work / "align"), STEPS)


def alignment_configured(run: Programs) -> Iterable[tuple[str, Any]]:
    """Train projector and adapters as a config says: on fields, and from the shipped weights."""
    settings = {
        **{"vl_model": "smollm2-135m", "data_dir": "fields", "val_samples": 1},
        **{"vae_config": "tok_ema/config.json", "vae_ckpt": "tok_ema/model.safetensors", "start_from": "new"},
        **{"output_dir": "align_fields", "max_3d_tokens": 48, "truncate_mode": "head", "positions": "sequential"},
        **{"use_lora": True, "lora_r": 2, "epochs": 1, "batch_size": 1, "best_by": "val_loss", "log_every": 1},
        **{"val_every": 2, "use_gradient_checkpointing": True, "merge": 2, "seed": 3},
    }
    (run.work / "align.yaml").write_text(json.dumps(settings))  # which is YAML too
    start = "scripts/run_3d_align_train.py"
    run(start, "--config", "align.yaml", "--device", "cpu", all_digits=True)
    yield "c alignment training: a config, on fields", run_digest(only_run(run.work / "align_fields"), 4)
    more = ["--start_from", "shipped", "--data_dir", "codes", "--output_dir", "align_shipped", "--max_samples", "6"]
    more += ["--no-use_gradient_checkpointing", "--max_3d_tokens", "64", "--vae_config", shipped(), "--device", "cpu"]
    more += ["--vae_ckpt", str(Path(shipped()).with_name("model.safetensors"))]
    run(start, "--config", "align.yaml", *more, all_digits=True)
    yield "c alignment training: from the shipped weights", run_digest(only_run(run.work / "align_shipped"), 4)


def shipped() -> str:
    """Return the shipped tokenizer's configuration."""
    (found,) = (TREE / "sdf_vqvae").rglob("weights/config.json")
    return str(found)


def reconstruction(run: Programs) -> Iterable[tuple[str, Any]]:
    """Evaluate the shipped tokenizer."""
    count = str(EVALUATED)
    flags = ["--split", "test", "--max_samples", count, "--samples", "5000", "--pictures", "1", "--device", "cpu"]
    run("vae_qwen3vl", "evaluate", "pack", "-o", "reconstruction", *flags, "--json")
    yield f"d reconstruction of {count} objects", folder_digest(run.work / "reconstruction")


SPEAK = ("vae_qwen3vl/eval_3d_vl.py", "--data_dir", "codes", "--split", "test", "--device", "cpu", "--save_mesh")


def words(run: Programs) -> Iterable[tuple[str, Any]]:
    """Evaluate the shipped projector and adapter, and rebuild meshes."""
    count = str(EVALUATED)
    flags = ["--max_eval_samples", count, "--max_new_tokens", "8", "--measures", "captions"]
    run(*SPEAK, *flags, "--voxel_resolution", "64", "--output_dir", "words")
    yield f"d words of {count} objects, blind controls, meshes", folder_digest(run.work / "words")


def words_with_scores(run: Programs) -> Iterable[tuple[str, Any]]:
    """Evaluate them by every measure, beside the true shapes."""
    flags = ["--max_eval_samples", "3", "--max_new_tokens", "4", "--max_3d_tokens", "32", "--shapes", "pack"]
    run(*SPEAK, *flags, "--output_dir", "words_scored")
    yield "d words of 3 objects: closed sets, retrieval, scores", folder_digest(run.work / "words_scored")


@dataclass(frozen=True)
class Part:
    """Some of the answers, and what belongs to them."""

    answer: Callable[[Programs], Iterable[tuple[str, Any]]]
    makes: tuple[str, ...]
    """Names in the work folder."""
    needs: tuple[str, ...] = ()
    """Parts that have to be done first."""


OTHER_TOKENIZERS = ("cosine", "simvq", "fsq", "pooled")
PARTS = {
    "codes": Part(codes_of_pack, ("codes",)),
    "mirror": Part(mirror_images, ("mirrored",)),
    "texts": Part(plain_texts, ("plain.jsonl", "plain.jsonl.part")),
    "reconstruction": Part(reconstruction, ("reconstruction",)),
    "tokenizer": Part(tokenizer_training, ("tok_ema", "tok_stage1", "tok_stage3")),
    "fields": Part(fields, ("fields", "unsigned", "converted")),
    "scans": Part(scans, ("ct_windows", "ct_masks")),
    "shapes": Part(single_shapes, ("single",)),
    "tokenizers": Part(other_tokenizers, tuple(f"tok_{name}" for name in OTHER_TOKENIZERS), ("fields",)),
    "alignment": Part(alignment_training, ("align",), ("codes", "mirror", "texts")),
    "words": Part(words, ("words",), ("codes",)),
    "library": Part(numbers_of_library, ("original",), ("codes", "mirror")),
    "configured": Part(
        alignment_configured,
        ("align.yaml", "align_fields", "align_shipped"),
        ("codes", "fields", "tokenizer"),
    ),
    "scored": Part(words_with_scores, ("words_scored",), ("codes",)),
}


# -- verbs -------------------------------------------------------------------------------------------------------


def about() -> Answers:
    """Return what numbers depend on besides the code."""
    import numpy
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TREE, capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    kinds = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))][:2]
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "processor": [kind if len(kind) < 80 else sha(kind.encode()) for kind in kinds],
    }


def write_numbers(folder: Path, answers: Answers, seconds: Mapping[str, float]) -> None:
    """Write `numbers.json`."""
    document = {"about": about(), "answers": answers, "left_out": sorted(left_out), "seconds": seconds}
    (folder / "numbers.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record(options: argparse.Namespace) -> int:
    """Run everything and write what came out; parts of an earlier call that are whole are kept."""
    target = options.output.resolve()
    (target / "work").mkdir(parents=True, exist_ok=True)
    prepare(options.data, target / "work")
    Programs.slots = threading.Semaphore(options.jobs)
    ready = {name: threading.Event() for name in PARTS}
    with ThreadPoolExecutor(len(PARTS)) as pool:  # all wait for what they need, and for a slot
        for each in [pool.submit(do_part, target, name, ready) for name in PARTS]:
            each.result()
    made = {name: json.loads((target / f"{name}.json").read_text()) for name in PARTS}
    answers = {question: answer for one in made.values() for question, answer in one["answers"].items()}
    left_out.update(key for one in made.values() for key in one["left_out"])
    write_numbers(target, dict(sorted(answers.items())), {name: one["seconds"] for name, one in made.items()})
    return 0


def do_part(target: Path, name: str, ready: Mapping[str, threading.Event]) -> None:
    """Answer the questions of a part, unless that has been done or what it needs has failed."""
    done, part = target / f"{name}.json", PARTS[name]
    try:
        for need in part.needs:
            ready[need].wait()
            if not (target / f"{need}.json").is_file():
                raise SystemExit(f"{name} needs {need}, which failed")
        if done.is_file():
            return
        run = Programs(target / "work", name)
        for path in (run.work / one for one in part.makes):  # of a call that broke off
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        start = time.monotonic()
        answers = dict(part.answer(run))
        seconds = round(time.monotonic() - start, 1)
        unfinished = target / f"{name}.unfinished"
        unfinished.write_text(json.dumps({"answers": answers, "left_out": sorted(left_out), "seconds": seconds}))
        unfinished.rename(done)
        print(f"{name}: {seconds} s", flush=True)
    finally:
        ready[name].set()


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Return the first place where two nested values differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return f"{place}/{key} is only in the {'first' if key in one else 'second'}"
            found = difference(one[key], other[key], f"{place}/{key}")
            if found is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other, strict=False)
        found = next((f for i, (a, b) in enumerate(pairs) if (f := difference(a, b, f"{place}/{i}"))), None)
        return found or (f"{place}: {len(one)} and {len(other)} items" if len(one) != len(other) else None)
    return None if repr(one) == repr(other) else f"{place}: {one!r} and {other!r}"  # NaN is NaN


def count_values(value: Any) -> int:
    """Return how many values there are to be equal."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if inner is None else sum(map(count_values, inner))


def compare(options: argparse.Namespace) -> int:
    """Print a row a question; return 1 if anything differs."""
    one, other = (json.loads((folder / "numbers.json").read_text()) for folder in (options.first, options.second))
    for key in one["about"]:
        if key != "commit" and one["about"][key] != other["about"][key]:
            print(f"not of the same {key}: {one['about'][key]} and {other['about'][key]}")
    print(f"{one['about']['commit'][:10]} and {other['about']['commit'][:10]}")
    equal = True
    for question in sorted({*one["answers"], *other["answers"]}):
        pair = [side["answers"].get(question) for side in (one, other)]
        missing = [name for name, side in zip(("first", "second"), pair, strict=True) if side is None]
        found = f"not answered by the {missing[0]}" if missing else difference(*pair)
        equal = equal and found is None
        print(
            f"{question:<58} "
            + (f"equal ({count_values(pair[0]):,} values)" if found is None else f"DIFFERS {found}")
        )
    print("left out:", ", ".join(sorted({*one["left_out"], *other["left_out"]})))
    return 0 if equal else 1


def old_weights(run: Programs) -> Iterable[tuple[str, Any]]:
    """Use what earlier runs left: evaluate, describe and encode with their weights."""
    settings = next((run.work / "align").glob("*/train_args.json")).relative_to(run.work)
    flags = ["--config", str(settings), "--data_dir", "codes", "--split", "test", "--max_eval_samples", "3"]
    flags += ["--max_new_tokens", "6", "--measures", "captions", "--device", "cpu", "--output_dir", "old_words"]
    run("vae_qwen3vl/eval_3d_vl.py", *flags)
    yield "g words by an earlier run's folder", folder_digest(run.work / "old_words")
    weights = ["--vae_config", "tok_ema/config.json", "--vae_ckpt", "tok_ema/model.safetensors", "--device", "cpu"]
    run("vae_qwen3vl", "encode", "examples/chair.glb", "-o", "old_chair.safetensors", *weights)
    run("vae_qwen3vl", "decode", "old_chair.safetensors", "-o", "old_chair.ply", *weights)
    yield (
        "g codes and mesh by an earlier tokenizer",
        [file_digest(run.work / f"old_chair.{s}") for s in ("safetensors", "ply")],
    )
    yield "g its checkpoint", run.json("vae_qwen3vl", "checkpoint", "tok_ema/model.safetensors")


STOPPED: dict[str, tuple[list[str], int, signal.Signals]] = {
    "stopped_align": (train_alignment("stopped_align"), 12, signal.SIGKILL),
    "stopped_tok": (train_tokenizer("ema", "stopped_tok", STEPS), 7, signal.SIGINT),
    "killed_tok": (train_tokenizer("ema", "killed_tok", STEPS), 8, signal.SIGKILL),
}
"""Runs: their command, the step after which they are stopped, and by what."""


def unbroken(work: Path) -> Iterable[tuple[str, Any]]:
    """Return the answers of runs that were not stopped."""
    yield "g stopped_align", run_digest(only_run(work / "align"), STEPS)
    for name in ("stopped_tok", "killed_tok"):
        yield f"g {name}", run_digest(work / "tok_ema", STEPS)


def stop(options: argparse.Namespace) -> int:
    """Make runs that were stopped, beside the unbroken ones of a recording, and what unbroken ones come to."""
    run = Programs(options.runs.resolve(), "stop")
    earlier = options.record.resolve() / "work"
    for name in ("codes", "mirrored", "pack", "configs", "examples", "align", "tok_ema"):
        shutil.copytree(earlier / name, run.work / name)
    shutil.copy(earlier / "plain.jsonl", run.work)
    with ThreadPoolExecutor(options.jobs) as pool:
        for each in [pool.submit(stop_after, run, name, *how) for name, how in STOPPED.items()]:
            each.result()
    write_numbers(run.work, dict([*unbroken(run.work), *old_weights(run)]), {})
    return 0


def stop_after(run: Programs, name: str, command: list[str], step: int, by: signal.Signals) -> None:
    """Start a run, and end it once its log tells of a step."""
    with (run.work / "console" / f"{name}.txt").open("w") as console:
        process = subprocess.Popen(
            run.command(*command),
            cwd=run.work,
            env=run.environment(all_digits=True),
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            logs = (run.work / name).rglob("log.jsonl")
            if any(f'"kind": "train", "step": {step},' in log.read_text() for log in logs):
                process.send_signal(by)
                break
            time.sleep(0.05)
        code = process.wait()
    expected = {signal.SIGINT: 130, signal.SIGKILL: -9}[by]
    if code != expected:
        raise SystemExit(f"{name} ended with {code}, not {expected}")
    steps = sorted(path.name for path in (run.work / name).rglob("checkpoints/step_*"))
    print(f"{name}: stopped after step {step} or so by {by.name}; checkpoints {', '.join(steps)}", flush=True)


def resume(options: argparse.Namespace) -> int:
    """Go on with a copy of stopped runs, use a copy of old weights, and compare both with what the old tree made."""
    target = options.output.resolve()
    shutil.copytree(options.runs.resolve(), target / "work")
    for name in ("old_words", "old_chair.safetensors", "old_chair.ply", "numbers.json"):
        path = target / "work" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Programs.slots = threading.Semaphore(options.jobs)
    with ThreadPoolExecutor(len(STOPPED)) as pool:
        answers = dict(pool.map(lambda name: (f"g {name}", go_on(target / "work", name)), STOPPED))
    answers |= dict(old_weights(Programs(target / "work", "old")))
    write_numbers(target, answers, {})
    return compare(argparse.Namespace(first=options.runs, second=target))


def go_on(work: Path, name: str) -> Answers:
    """Go on with a stopped run to its end, and return what it came to."""
    run, command = Programs(work, name), STOPPED[name][0]
    aligning = "align" in name  # the other program goes on by itself
    run(*command, *(["--resume"] if aligning else []), all_digits=True)
    return run_digest(only_run(work / name) if aligning else work / name, STEPS)


def main() -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("record", help="run everything and write OUT/numbers.json")
    one.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    one.add_argument("--data", type=Path, required=True, help="folder with shapes/, ct/ and parity/")
    one.set_defaults(work=record)
    one = verbs.add_parser("compare", help="print a row a question; exit code 1 if anything differs")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.set_defaults(work=compare)
    one = verbs.add_parser("stop", help="make runs that were stopped")
    one.add_argument("runs", type=Path, metavar="RUNS", help="a new folder")
    one.add_argument("--record", type=Path, required=True, help="of the same tree: its inputs and unbroken runs")
    one.set_defaults(work=stop)
    one = verbs.add_parser("resume", help="go on with a copy of them, and compare with the unbroken ones")
    one.add_argument("runs", type=Path, metavar="RUNS")
    one.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    one.set_defaults(work=resume)
    one = verbs.add_parser("look", help="(called by record)")
    one.add_argument("place", type=Path)
    one.add_argument("fixture", type=Path, nargs="?")
    one.set_defaults(work=lambda o: print(json.dumps(look(o.place, o.fixture))) or 0)
    for one in (verbs.choices[name] for name in ("record", "stop", "resume")):
        one.add_argument("--jobs", type=int, default=1, metavar="N", help="programs at a time (1)")
    options = parser.parse_args()
    return int(options.work(options))


if __name__ == "__main__":
    sys.exit(main())
