"""How many objects a second get words, and by how much work, by how many answers are written together.

python benchmarks/speed/describing.py CODES --count 64

Objects of a folder of codes go through what `vae-qwen3vl describe` does; loading the models is not timed. One answer
at a time is the baseline, and its words are compared: a batch is padded, so a near tie may fall the other way.
Seconds of the processor say what a batch saves also where other work runs beside it.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.descriptions.run import Record, describe_all
from vae_qwen3vl.descriptions.settings import DescribeSettings


def main() -> None:
    """Measure several batch sizes and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("codes", type=Path, help="folder of codes, of `encode`")
    parser.add_argument("--count", type=int, default=64, help="its first so many objects")
    parser.add_argument(
        "--batch_sizes", default="1,2,4,8,16,32", help="with commas between; the first is the baseline"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    device, rows = resolve_device(options.device), []
    first: dict[str, str] = {}
    for size in map(int, options.batch_sizes.split(",")):
        settings = DescribeSettings(
            sources=(options.codes,),
            batch_size=size,
            max_samples=options.count,
            max_new_tokens=options.max_new_tokens,
        )
        texts: dict[str, str] = {}

        def keep(record: Record, texts: dict[str, str] = texts) -> None:
            texts[record["shape"]] = record["text"]

        start = time.process_time()
        describe_all(dataclasses.replace(settings, max_samples=1, max_new_tokens=1), device)
        loaded = time.process_time()
        report = describe_all(settings, device, keep)
        work = (time.process_time() - loaded) - (loaded - start)
        first = first or texts
        rows.append(
            {
                "batch_size": size,
                "objects": report.described,
                "seconds": report.seconds,
                "objects_per_second": round(report.described / report.seconds, 2),
                "processor_seconds": round(work, 1),
                "times_the_baseline": round(rows[0]["seconds"] / report.seconds, 2) if rows else 1.0,
                "same_words": sum(first[name] == text for name, text in texts.items()),
            }
        )
        if device.type == "cuda":
            rows[-1]["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        print(rows[-1], flush=True)
    print(write_run(options, {"rows": rows}))


if __name__ == "__main__":
    main()
