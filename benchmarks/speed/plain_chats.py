"""What it costs that chats without an object are answered by the untouched weights: loading, and a token of a batch.

    python benchmarks/speed/plain_chats.py

Answers of batches in which all chats have an object, none has, or every second one, by the engine, with the weights
from before kept beside the adapted ones and without. A step's time is the median; on a CPU it is the processors',
which other work on the machine hardly changes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device, setup_logging
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.generation.engine import Engine, Sampling
from vae_qwen3vl.language.adapted_rows import AdaptedLinear
from vae_qwen3vl.processor import Message, Processor3D
from vae_qwen3vl.sequence_3d import coords_of_cells


def chats(batch: int, with_object: Sequence[bool], shape: ShapeCodes) -> list[tuple[list[Message], list[ShapeCodes]]]:
    """Return chats and their objects."""
    asked = []
    for number in range(batch):
        there = with_object[number % len(with_object)]
        content = [*([{"type": "3d"}] if there else []), {"type": "text", "text": f"Count from {number}."}]
        asked.append(([{"role": "user", "content": content}], [shape] if there else []))
    return asked


def milliseconds(
    engine: Engine, asked: list[tuple[list[Message], list[ShapeCodes]]], tokens: int, clock: Callable[[], float]
) -> float:
    """Return the median time of the steps in which every chat gets a token."""
    step, times = engine._step, []

    def timed() -> None:
        all_there, start = len(engine._active) == len(asked), clock()
        step()
        if all_there:
            times.append(clock() - start)

    engine._step = timed  # type: ignore[method-assign]
    answers = [engine.submit(messages, objects, Sampling(max_new_tokens=tokens)) for messages, objects in asked]
    with engine:
        [answer.text() for answer in answers]
    return 1000 * statistics.median(times[1:])


def main() -> None:
    """Measure, print and record."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--device")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="chats at a time (1 8)")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer (%(default)s)")
    options = parser.parse_args()
    setup_logging()
    quiet_transformers()
    device = resolve_device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    vae = load_vae_from_config(None, None, device)
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(vae.config.latent_resolution**3, generator=generator)[:400].sort().values
    shape = ShapeCodes(
        codes=torch.randint(0, len(vae.vq.embeddings.weight), (400,), dtype=torch.int32, generator=generator),
        coords=coords_of_cells(cells, vae.config.latent_resolution).int(),
        latent_resolution=vae.config.latent_resolution,
        data_resolution=vae.config.data_resolution,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash=vae.fingerprint(),
    )
    rows: dict[str, Any] = {}
    for kept in (False, True):
        start = clock()
        model = load_describer(vae, device=device, plain_chats=kept)
        loading = clock() - start
        words = Processor3D.from_pretrained(model.model_name_or_path)
        maps = [module for module in model.vl_model.modules() if isinstance(module, AdaptedLinear)]
        more = sum(one.untouched.numel() * one.untouched.element_size() for one in maps)
        row: dict[str, Any] = {"loading_seconds": loading, "kept_megabytes": more / 1e6}
        for batch in options.batches:
            kinds = {"all": [True], "none": [False]} | ({"half": [True, False]} if batch > 1 else {})
            for name, pattern in kinds.items():
                asked = chats(batch, pattern, shape)
                engine = Engine(model, words, prefix_tokens=0)
                engine._ends = set()  # answers are equally long
                took = milliseconds(engine, asked, options.tokens, clock)
                row[f"{batch} chats, {name} with an object, ms a step"] = took
        rows["kept" if kept else "not kept"] = row
        dtype = str(model.vl_model.dtype).removeprefix("torch.")
        del model
    for name, row in rows.items():
        print(name, *(f"  {key}: {value:.1f}" for key, value in row.items()), sep="\n")
    print(write_run(options, {"dtype": dtype, "rows": rows}))


if __name__ == "__main__":
    main()
