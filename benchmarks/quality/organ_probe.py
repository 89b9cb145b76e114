"""How far organs can be told by what the model's tokens of the whole shape see, and what turning objects is worth.

    python benchmarks/quality/organ_probe.py --codes train_codes

No language model: a network of one hidden layer learns the training organs' names (left and right counted as one)
from the occupancy of 8^3 boxes round an object, and is asked for the held-out organs with names that training has.
Training organs are changed anew each time as in the default's training (`CodeAugmentation`, and half of the time
mirrored, x -> -x), without turns and with turns of each deviation asked for; several seeds each.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from organ_neighbors import TOPS, organs_of
from torch import Tensor, nn
from tqdm import tqdm

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.data.augmentation import CodeAugmentation
from vae_qwen3vl.sequence_3d import coarse_occupancy, joined_coords

BOXES, WIDTH, BATCH = 8, 512, 64


def occupancy_of(cells: list[Tensor]) -> Tensor:  # [B, BOXES^3]
    """Return what the network reads of objects, each its cells `[N, 3]`."""
    return coarse_occupancy(joined_coords(cells).long(), BOXES)


def changed(cells: Tensor, augmentation: CodeAugmentation, side: int) -> Tensor:
    """Return an object's cells as a step of training has them, by PyTorch's global chance."""
    if torch.rand(()) < 0.5:
        x = cells[:, :1]
        cells = torch.cat([x.min() + x.max() - x, cells[:, 1:]], 1)
    return augmentation(torch.arange(len(cells)), cells, side, lambda _: int(torch.randint(2**62, ())))[1]


def fit(cells: list[Tensor], names: Tensor, augmentation: CodeAugmentation, side: int, steps: int) -> nn.Module:
    """Return a network that has learned the names `[N]` of objects."""
    network = nn.Sequential(
        nn.LayerNorm(BOXES**3),
        nn.Linear(BOXES**3, WIDTH),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(WIDTH, int(names.max()) + 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in tqdm(range(steps), unit="step", leave=False):
        chosen = torch.randint(len(names), (BATCH,))
        batch = occupancy_of([changed(cells[n], augmentation, side) for n in chosen.tolist()])
        loss = F.cross_entropy(network(batch), names[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def main() -> None:
    """Print the shares and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument(
        "--codes", type=Path, required=True, help="folder of cached codes with questions of each split"
    )
    parser.add_argument(
        "--turns", type=float, nargs="+", default=[0.0, 8.0], help="deviations in degrees (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks of each (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help=f"batches of {BATCH} (default %(default)s)")
    options = parser.parse_args()
    codes = CodeFolder(options.codes)
    train, val, test = organs_of(codes)
    numbers = {name: number for number, name in enumerate(sorted(set(train.values())))}
    asked = val | test
    classes, right = (torch.tensor([numbers[name] for name in part.values()]) for part in (train, asked))
    of_test = torch.tensor([name in test for name in asked])
    cells = [codes[name][1] for name in train]
    held_out = occupancy_of([codes[name][1] for name in asked])
    result: dict[str, Any] = {"training_organs": len(train), "names": len(numbers), "asked": len(asked)}
    for turn in options.turns:
        augmentation = CodeAugmentation(drop_cells=0.3, turn_degrees=turn, shift_cells=3)
        shares: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            network = fit(cells, classes, augmentation, codes.manifest.latent_resolution, options.steps)
            with torch.no_grad():
                places = network(held_out).argsort(dim=1, descending=True)
            for top in TOPS:
                hit = (places[:, :top] == right[:, None]).any(1).float()
                shares.setdefault(f"top_{top}", []).append(round(float(hit.mean()), 4))
                shares.setdefault(f"top_{top}_of_test", []).append(round(float(hit[of_test].mean()), 4))
        row = result[f"turned by {turn:g} degrees"] = {
            key: {"mean": round(statistics.mean(values), 4), "seeds": values} for key, values in shares.items()
        }
        print(f"turned by {turn:g} degrees: {row}", flush=True)
    write_run(options, result, "cpu")


if __name__ == "__main__":
    main()
