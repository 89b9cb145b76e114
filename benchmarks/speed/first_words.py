"""How soon words come on a CPU: time to the first token and to 20 words, from cached codes.

python benchmarks/speed/first_words.py --threads 2

The embedded default language model with the shipped projector and adapter, through the model's own `generate`, greedy
and without an early end. One object fills 512 3D tokens, the other is an example mesh with the tokens it has by
default. 20 words are the tokens that 20 English words of captions take. Times are medians of warm runs, and hold
everything from codebook vectors to token ids. The language model computes in the dtype that `describe` would choose
on this machine, and beside it in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.geometry.mesh import load_mesh
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.language.backbone import inference_dtype
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.vae_latent_extractor import extract_3d_latent

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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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


if __name__ == "__main__":
    main()
