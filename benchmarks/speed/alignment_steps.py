r"""How fast alignment trains: at 2B shapes, and for the embedded default; from cached codes and from fields.

    python benchmarks/speed/alignment_steps.py --pack ../shared/data/shapes
    accelerate launch --num_processes 2 --mixed_precision bf16 benchmarks/speed/alignment_steps.py --parts large \
        --trained lora
    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 --mixed_precision bf16 \
        benchmarks/speed/alignment_steps.py --parts large --trained lora --models Qwen3-VL-2B --batch_sizes 32 \
        --no-checkpointing

With several processes each works on a batch of that size; rates are of all together. FSDP takes one model and one
batch size a run: Accelerate remembers the first model's layers, and a model is sharded once.

Steps are those of the project's trainer (`AlignmentTrainer.step`: forward, backward, clipping, AdamW; bfloat16 on
CUDA), on batches that lie ready. Large models have the published shapes of the text part and random weights; their
vision towers are tiny, for no image is read. An object has 512 codes and as many 3D tokens, and 40 to 60 text tokens,
20 of them supervised, so that rows are padded as in training. The parts `inside` and `default` take real objects:
blocks of 2^3 (4^3) codes, at most 512 tokens an object, in batches of similar length by the training's own sampler.

The rate in TFLOP/s counts what is multiplied with frozen weights, 2 operations a weight forward and 2 backward for
the gradient of the activations (nothing for the weights' own): 4 N tokens, N being the weights of the text layers for
every real token and those of the head for supervised ones. Attention's own products, adapters, projector, padding and
recomputation count nothing. The peak is that of an 8192^3 product of bfloat16 matrices measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.loading import BucketSampler
from vae_qwen3vl.language.backbone import compile_layers, embedding_table
from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.sequence_3d import coords_of_cells, joined_coords
from vae_qwen3vl.training.processes import is_sharding, make_accelerator
from vae_qwen3vl.training.run_data import AlignmentData, Batch
from vae_qwen3vl.training.trainer import AlignmentTrainer

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("large", "inside", "default")
TRAINED = ("projector", "lora")
"""A LoRA is trained with the projector."""
WIDTH = 16
CODES, SUPERVISED, TEXT = 512, 20, (40, 60)
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2-VL-2B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
    "Qwen3-VL-2B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 640}


def build(name: str, device: torch.device, *, tiny: bool) -> Any:
    """Return a language model of the published text shape with random weights."""
    import transformers

    text = SHAPES[name] | (
        {**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16} if tiny else {}
    )
    head = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    section = [head // 8, head * 3 // 16, head * 3 // 16]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    text |= {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    markers = {"vision_start_token_id": 1, "vision_end_token_id": 2, "image_token_id": 3, "video_token_id": 4}
    if name.startswith("Qwen2"):
        vision: dict[str, Any] = {"depth": 1, "embed_dim": 32, "hidden_size": text["hidden_size"], "num_heads": 2}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **markers)
        kind = transformers.Qwen2VLForConditionalGeneration
    else:
        vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": text["hidden_size"]}
        vision |= {"intermediate_size": 32, "deepstack_visual_indexes": [], "num_position_embeddings": 16}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **markers)
        kind = transformers.Qwen3VLForConditionalGeneration
    config.tie_word_embeddings = True
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return kind(config)
    finally:
        torch.set_default_dtype(before)


def text_batch(count: int, vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Return chats of random words with a placeholder each, padded, the last words supervised."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(TEXT[0], TEXT[1] + 1, (count,), generator=random)
    ids = torch.randint(5, vocabulary, (count, int(lengths.max())), generator=random)
    ids[:, 3] = PLACEHOLDER_3D
    place = torch.arange(ids.shape[1])
    real = place < lengths[:, None]
    answer = real & (place >= lengths[:, None] - SUPERVISED)
    return {
        "input_ids": torch.where(real, ids, 0),
        "attention_mask": real.long(),
        "labels": torch.where(answer, ids, IGNORED_LABEL),
    }


def code_batch(count: int, vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Return objects of `CODES` codes at random cells, with their chats."""
    random = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(32**3, generator=random)[:CODES] for _ in range(count)])
    objects = torch.arange(count)[:, None].expand(count, CODES)
    coords = torch.cat([objects.reshape(-1, 1), coords_of_cells(cells.flatten(), 32)], dim=1).int()
    feats = torch.randn(count * CODES, WIDTH, generator=random)
    return {"feats_3d": feats, "coords_3d": coords, **text_batch(count, vocabulary, seed)}


def trainer_of(
    branch: Qwen3VLWith3DBranch, accelerator: Any, folder: Path, size: int, codebook: Tensor | None
) -> AlignmentTrainer:
    """Return the project's trainer, to be stepped by hand."""
    config = AlignmentConfig(dummy_data=True, epochs=1, batch_size=size, projector_share=0.0)
    no_items: Any = []
    data = AlignmentData(train=no_items, lengths=[1.0] * size, val=None, collate=list, codebook=codebook)
    trainer = AlignmentTrainer(branch, config, data, folder, accelerator)
    branch.train()
    return trainer


def time_steps(trainer: AlignmentTrainer, batches: Sequence[Batch], steps: int) -> tuple[float, float]:
    """Return the seconds of a round of steps, one a batch, and the largest memory in GB.

    Batches lie in the memory that the trainer's loader puts them in. A round warms up, two of a single batch. The
    time is the median of as many rounds as have about `steps` steps, at least one.
    """
    cuda = trainer.accelerator.device.type == "cuda"
    ready = list(DataLoader(batches, batch_size=None, pin_memory=cuda))  # type: ignore[arg-type]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rounds = []
    warm_up = 2 if len(batches) == 1 else 1
    for number in range(warm_up + max(1, steps // len(batches))):
        seconds = 0.0
        for batch in ready:
            start = time.perf_counter()
            with trainer.autocasting():
                trainer.step([batch], 0.5)  # ends with the norm of the gradients on the host
            if cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
        if number >= warm_up:
            rounds.append(seconds)
    return statistics.median(rounds), torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def peak(device: torch.device, side: int) -> float:
    """Return the measured TFLOP/s of products of bfloat16 matrices, ten in a row, the best of five rows."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * side**3 / best / 1e12


def measure_large(options: argparse.Namespace, accelerator: Any, rate: float) -> list[dict[str, Any]]:
    """Train projector, and projector with LoRA, at 2B shapes."""
    rows: list[dict[str, Any]] = []
    for name in options.models:
        for lora in (trained == "lora" for trained in options.trained):
            branch = large_branch(name, options, accelerator.device, lora=lora, max_3d_tokens=0)
            named = branch.vl_model.named_parameters()
            layers = sum(p.numel() for n, p in named if ".layers." in n and "visual" not in n and "lora_" not in n)
            vocabulary, hidden = embedding_table(branch.vl_model).shape
            for size in options.batch_sizes:
                also = options.checkpointing and lora and size == max(options.batch_sizes)
                for checkpointing in (False, True) if also else (False,):
                    if checkpointing:
                        branch.vl_model.gradient_checkpointing_enable({"use_reentrant": False})
                    batch = code_batch(size, vocabulary)
                    row: dict[str, Any] = {
                        "model": name,
                        "text_layers_parameters": layers,
                        "trained": "projector and LoRA" if lora else "projector",
                        "batch_size": size,
                        "checkpointing": checkpointing,
                    }
                    timed = timed_row(branch, accelerator, size, [batch], options.steps)
                    seconds = timed.get("milliseconds", float("inf")) / 1e3
                    tokens = int(batch["attention_mask"].sum()) + size * (CODES + 1)  # 2 markers for 1 placeholder
                    work = 4 * (layers * tokens + vocabulary * hidden * size * SUPERVISED)
                    row |= {
                        **timed,
                        "tokens_per_second": round(tokens * accelerator.num_processes / seconds),
                        "tflops_per_gpu": round(work / seconds / 1e12, 1),
                        "share_of_peak": round(work / seconds / 1e12 / rate, 3),
                    }
                    keep(rows, row, accelerator)
            del branch
            _free()
    return rows


def keep(rows: list[dict[str, Any]], row: dict[str, Any], accelerator: Any) -> None:
    """Append a row, and print it in the first process."""
    rows.append(row)
    if accelerator.is_main_process:
        print(row, flush=True)


def large_branch(
    name: str, options: argparse.Namespace, device: torch.device, *, lora: bool, **settings: Any
) -> Qwen3VLWith3DBranch:
    """Return a 2B shape with a 3D branch, compiled if asked for."""
    branch = Qwen3VLWith3DBranch(
        name, use_vl_model=build(name, device, tiny=options.tiny), latent_dim=WIDTH, **settings
    )
    if lora:
        branch.add_lora(16, 32, 0.0)
    if options.compile:
        compile_layers(branch.vl_model)
    return branch


def timed_row(
    branch: Qwen3VLWith3DBranch,
    accelerator: Any,
    size: int,
    batches: Sequence[Batch],
    steps: int,
    codebook: Tensor | None = None,
) -> dict[str, Any]:
    """Return time, rate and memory of training steps on batches of a size, or why there are none."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(branch, accelerator, Path(folder), size, codebook)
            seconds, memory = time_steps(trainer, batches, steps)
            seconds /= len(batches)
        return {
            "milliseconds": round(1e3 * seconds, 1),
            "objects_per_second": round(size * accelerator.num_processes / seconds, 1),
            "peak_memory_gb": round(memory, 1),
        }
    except torch.OutOfMemoryError:
        return {"error": "does not fit into the GPU's memory"}
    except RuntimeError as error:
        # Such as a kernel that can't count so many voxels: the rows before must not be lost.
        logger.exception("this row failed")
        return {"error": str(error).partition("\n")[0], "failed": True}
    finally:
        _free()


def encoded_objects(
    vae: SparseSDFVQVAE, options: argparse.Namespace
) -> tuple[list[SparseSDF], list[tuple[Tensor, Tensor]]]:
    """Return fields with their codes `[N]` and cells `[N, 3]`: of the pack, drawn with seed 0, or of the examples."""
    from sdf_vqvae.codes.encoding import EncodeWorker, objects_of
    from sdf_vqvae.codes.settings import EncodeSettings

    source = options.pack or ROOT / "examples"
    settings = EncodeSettings(source=source, output=source)
    worker = EncodeWorker(str(vae.device), settings=settings, vae=vae)
    jobs = list(objects_of(settings, vae).places.items())
    order = torch.randperm(len(jobs), generator=torch.Generator().manual_seed(0))
    fields: list[SparseSDF] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for numbers in order[: options.objects].split(settings.objects_at_a_time):
        names, places = zip(*(jobs[number] for number in numbers.tolist()), strict=True)
        voxelized = [
            (name, field)
            for name, field in zip(names, worker.fields_of(places), strict=True)
            if not isinstance(field, str)
        ]
        for (_, field), (_, codes, cells, _, reason) in zip(voxelized, worker.encode_fields(voxelized), strict=True):
            if codes is None or cells is None:
                logger.warning("left out: %s", reason)
                continue
            fields.append(field.to("cpu"))
            pairs.append((codes, cells.int()))
    return fields, pairs


def bytes_of(batch: Mapping[str, Any]) -> int:
    """Return how much memory a batch takes."""
    return sum(bytes_of(v) if isinstance(v, Mapping) else v.numel() * v.element_size() for v in batch.values())


def measure_default(options: argparse.Namespace, accelerator: Any) -> list[dict[str, Any]]:
    """Train the embedded default's projector from cached codes, and from fields that are encoded in the step."""
    from vae_qwen3vl.language.default_model import resolve_vl_model

    def make(vae: SparseSDFVQVAE) -> Qwen3VLWith3DBranch:
        branch = Qwen3VLWith3DBranch(
            str(resolve_vl_model(options.vl_model)),
            vae_model=vae,
            torch_dtype=torch.bfloat16 if accelerator.device.type == "cuda" else torch.float32,
            merge=4,
            max_3d_tokens=512,
            projector_num_layers=2,
            shape_tokens=2,
        )
        if options.compile:
            compile_layers(branch.vl_model)
        return branch

    models = {"projector of the embedded default": make}
    return measure_sources(models, options.default_batches, options, accelerator)


def measure_inside(options: argparse.Namespace, accelerator: Any) -> list[dict[str, Any]]:
    """Train projector and LoRA at 2B shapes from cached codes, and with the tokenizer inside the step."""

    def make(name: str, vae: SparseSDFVQVAE) -> Qwen3VLWith3DBranch:
        settings: dict[str, Any] = {"vae_model": vae, "merge": 2, "max_3d_tokens": CODES}
        return large_branch(name, options, accelerator.device, lora=True, **settings)

    models = {f"projector and LoRA, {name}": functools.partial(make, name) for name in SHAPES}
    return measure_sources(models, [options.inside_batch], options, accelerator)


def measure_sources(
    models: Mapping[str, Callable[[SparseSDFVQVAE], Qwen3VLWith3DBranch]],
    sizes: Sequence[int],
    options: argparse.Namespace,
    accelerator: Any,
) -> list[dict[str, Any]]:
    """Train on the same objects from cached codes and from fields, in batches such as training makes."""
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.vae_latent_extractor import codebook

    vae = load_vae_from_config(None, None, accelerator.device)
    fields, pairs = encoded_objects(vae, options)
    table = codebook(vae).detach()
    rows: list[dict[str, Any]] = []
    for trained, make in models.items():
        branch = make(vae)
        vocabulary = len(embedding_table(branch.vl_model))
        lengths = [
            int(branch.count_3d_tokens(table[codes.long()].cpu(), joined_coords([cells]))) - 2
            for codes, cells in pairs
        ]
        for size in sizes:
            groups = list(BucketSampler(lengths, size))
            texts = [text_batch(size, vocabulary, number) for number in range(len(groups))]
            for source, joined in (
                ("cached codes", functools.partial(codes_batch, pairs)),
                ("fields, encoded in the step", functools.partial(fields_batch, fields)),
            ):
                batches = [joined(*both) for both in zip(groups, texts, strict=True)]
                row = {
                    "trained": trained,
                    "from": source,
                    "objects": "examples" if options.pack is None else "pack",
                    "different_objects": len(fields),
                    "voxels_an_object": round(sum(len(field.sdf) for field in fields) / len(fields)),
                    "tokens_3d_an_object": round(sum(lengths) / len(lengths)),
                    "processes": accelerator.num_processes,
                    "batch_size": size,
                    "megabytes_moved_an_object": round(sum(map(bytes_of, batches)) / len(batches) / size / 1e6, 3),
                    **timed_row(branch, accelerator, size, batches, options.steps, table),
                }
                keep(rows, row, accelerator)
        del branch
        _free()
    return rows


def codes_batch(pairs: Sequence[tuple[Tensor, Tensor]], group: Sequence[int], text: Mapping[str, Tensor]) -> Any:
    """Return a batch of a group of objects, of which `pairs` has codes `[N]` and cells `[N, 3]`, with a text each."""
    codes, cells = zip(*(pairs[number] for number in group), strict=True)
    return {"codes_3d": torch.cat(codes), "coords_3d": joined_coords(cells), **text}


def fields_batch(fields: Sequence[SparseSDF], group: Sequence[int], text: Mapping[str, Tensor]) -> Any:
    """Return a batch of the fields of a group of objects, with a text each."""
    from sdf_vqvae.fields.sparse_sdf import collate_sparse_sdf

    return {"inputs_3d": collate_sparse_sdf([fields[number] for number in group]), **text}


def _free() -> None:
    gc.collect()
    with contextlib.suppress(RuntimeError):  # of a row that failed, and was said there
        torch.cuda.empty_cache()


def main() -> int:
    """Measure, print the rows and write the result; 1 if a row failed."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="the large models")
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=TRAINED, help="in the large models")
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of the large models with LoRA, the largest batch with gradient checkpointing too",
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[4, 16, 32], help="of the large models")
    parser.add_argument("--inside_batch", type=int, default=16, help="of the large models with the tokenizer inside")
    parser.add_argument("--default_batches", nargs="+", type=int, default=[32, 128], help="of the default")
    parser.add_argument("--objects", type=int, default=512, help="of the pack, for the parts inside and default")
    parser.add_argument("--pack", type=Path, help="pack whose meshes the default is timed on (default: the examples)")
    parser.add_argument(
        "--steps",
        type=int,
        default=8,
        help="timed steps of each row, but whole rounds through its batches (default %(default)s)",
    )
    parser.add_argument("--vl_model", help="instead of the embedded default")
    parser.add_argument("--tiny", action="store_true", help="shapes small enough for a CPU, to try the program")
    parser.add_argument("--compile", action="store_true", help="compile the text layers (torch.compile)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    options = parser.parse_args()
    accelerator = make_accelerator(cpu=options.cpu or not torch.cuda.is_available())
    result: dict[str, Any] = {"processes": accelerator.num_processes}
    result |= {"compiled": options.compile, "sharded": is_sharding(accelerator)}
    if "large" in options.parts:
        rate = peak(accelerator.device, 512 if options.tiny else 8192)
        result["peak_tflops"] = round(rate, 1)
        result["large"] = measure_large(options, accelerator, rate)
    if "inside" in options.parts:
        result["inside"] = measure_inside(options, accelerator)
    if "default" in options.parts:
        result["default"] = measure_default(options, accelerator)
    if accelerator.is_main_process:
        many = [f"{accelerator.num_processes} GPUs"] if accelerator.num_processes > 1 else []
        how = [word for word, so in (("compiled", options.compile), ("sharded", result["sharded"])) if so]
        write_run(options, result, ", ".join([*options.parts, *how, *many]))
    accelerator.end_training()
    return int(any(row.get("failed") for part in PARTS for row in result.get(part, [])))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
