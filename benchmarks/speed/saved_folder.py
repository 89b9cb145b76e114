"""What transformers' interface costs beside our own classes: time to open, memory, time and words of an answer.

python benchmarks/speed/saved_folder.py --threads 2

The shipped model, as `load_describer` opens it (the baseline) and as `from_pretrained` opens it: whole, with its
adapter merged, and with the language model in int8 (torchao). The same objects are asked about in each, greedily and
in one batch; the logits of the whole folder are compared with those of the same parts put together by hand, which
must be equal. Bytes are those of all weights in memory. Seconds are processors' time, all threads together, which
other work beside changes less.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.pretrained import ShapeVLForConditionalGeneration, ShapeVLProcessor
from vae_qwen3vl.pretrained.packing import pack
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.trained_parts import shipped_weights
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

ROOT = Path(__file__).resolve().parents[2]
_PROMPT = "Describe this 3D shape in one sentence:"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the seconds of processors' time it took, all threads together."""
    start = time.process_time()
    result = work()
    return result, round(time.process_time() - start, 2)


def bytes_of(model: nn.Module) -> int:
    """Return what the weights take, tensors of quantised ones counted as they are kept."""

    def size(value: Tensor) -> int:
        if hasattr(value, "__tensor_flatten__"):
            return sum(size(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()

    kept = {id(value): size(value) for value in (*model.parameters(), *model.buffers())}
    return sum(kept.values())


def main() -> None:
    """Open and ask."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--objects", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    processor = ShapeVLProcessor.from_pretrained("shipped", device="cpu")
    shapes = [processor.encode_mesh(path) for path in sorted((ROOT / "examples").glob("*.glb"))[: options.objects]]
    chats = [
        [{"role": "user", "content": [{"type": "mesh", "mesh": shape}, {"type": "text", "text": _PROMPT}]}]
        for shape in shapes
    ]
    inputs = processor(chats)
    generation = {"do_sample": False, "max_new_tokens": options.new_tokens}
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, model: nn.Module, opening: float, ask: Callable[[], list[str]]) -> None:
        answers, seconds = timed(ask)
        rows[name] = {
            "cpu_seconds_to_open": opening,
            "megabytes": round(bytes_of(model) / 1e6, 1),
            "cpu_seconds_to_answer": seconds,
            "load": round(os.getloadavg()[0], 2),
            "answers": answers,
        }
        print(name, json.dumps(rows[name]), flush=True)

    branch, opening = timed(lambda: load_describer(processor.vae, device="cpu", dtype=torch.float32))
    words, given = Processor3D(processor.tokenizer), shapes_of(branch, shapes)
    prompts = [_PROMPT] * len(shapes)
    row(
        "load_describer",
        branch,
        opening,
        lambda: words.decode(branch.generate(**words(prompts), **given, **generation)),
    )
    with tempfile.TemporaryDirectory() as folder:
        pack(folder)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        kinds: dict[str, dict[str, Any]] = {
            "folder": {},
            "folder, adapter merged": {"merge_adapter": True},
            "folder, int8": {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())},
        }
        for name, how in kinds.items():
            model, opening = timed(lambda how=how: ShapeVLForConditionalGeneration.from_pretrained(folder, **how))

            def ask(model: Any = model) -> list[str]:
                out = model.generate(**inputs, **generation)
                return words.decode(out[:, inputs["input_ids"].shape[1] :])

            row(name, model, opening, ask)
            if name == "folder":
                equal = equal_logits(model, inputs, words, prompts, given)
    print(
        write_run(options, {"threads": options.threads, "folder_bytes": size, "equal_logits": equal, **rows}, "cpu")
    )


def shapes_of(branch: Qwen3VLWith3DBranch, shapes: list[ShapeCodes]) -> dict[str, Tensor]:
    """Return the objects as the branch takes them."""
    return {
        "feats_3d": codebook_vectors(torch.cat([shape.codes for shape in shapes]), branch.vae_model),
        "coords_3d": joined_coords([shape.coords for shape in shapes]),
    }


def equal_logits(
    model: ShapeVLForConditionalGeneration,
    inputs: Any,
    words: Processor3D,
    prompts: list[str],
    given: dict[str, Tensor],
) -> bool:
    """Return whether the folder's logits are those of the same parts put together by hand."""
    projector, lora = shipped_weights()
    assert projector is not None and lora is not None
    parts = Qwen3VLWith3DBranch(model.branch.model_name_or_path + "/language_model", latent_dim=16).eval()
    parts.load_projector(projector)
    parts.load_lora(lora)
    with torch.inference_mode():
        ours = model(**inputs).logits
        theirs = parts.eval()(**words(prompts), **given).logits
    return torch.equal(ours, theirs)


if __name__ == "__main__":
    main()
