"""Train the network that says which way is up, from a pack of meshes that stand along +y.

    python scripts/train_upright.py grids PACK -o outputs_upright/grids.npz      # minutes on one core
    python scripts/train_upright.py train outputs_upright/grids.npz -o outputs_upright
    python scripts/train_upright.py measure outputs_upright/grids.npz --split test

The first fills the grids that the network looks at, for every mesh of the pack; the second trains on the split
`train` and writes `upright.safetensors` with, in `upright.json`, how often the right axis is found on `val`; the
third measures the shipped network (or `--weights`). The loss is the cross-entropy of the right axis among all six,
each seen in a random turn about it. Training grids are tilted, stretched and mirrored a little, anew each time.

"y or z" is a file whose object stands along y or along z, equally often, and which of the two is taken. The table of
rules says how often each is right where z has another share: `always z`, `always y`, the shape alone, and the shape
weighed with the shares that the programs use.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.geometry.upright_network import (
    GRID,
    UP_AXES,
    USUAL,
    WEIGHTS,
    WIDTHS,
    UprightScorer,
    load_scorer,
    scores_of_axes,
    surface_grid,
    turned_grids,
    turns_to_upright,
)
from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import atomic_path, write_json
from sdf_vqvae.utils.runtime import resolve_device

STANDS_ALONG = "y"
_SHARE_OF_LDRAW = 0.35
_TILT, _STRETCH = 5.0, 0.1


def make_grids(pack_folder: Path, target: Path) -> None:
    """Write the grids of all meshes of a pack: bits `[N, GRID^3 / 8]`, sources, splits and ids."""
    pack = MeshPack(pack_folder)
    rows: dict[str, list[Any]] = {"bits": [], "source": [], "split": [], "id": []}
    for entry in tqdm(pack.entries, unit="mesh"):
        try:
            grid = surface_grid(pack.mesh(entry))
        except ValueError as error:
            print(f"{entry.id} is left out: {error}", file=sys.stderr)
            continue
        rows["bits"].append(np.packbits(grid.numpy()))
        for key, value in (("source", entry.source), ("split", entry.split), ("id", entry.id)):
            rows[key].append(value)
    content = io.BytesIO()
    np.savez_compressed(content, **{key: np.array(values) for key, values in rows.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content.getvalue())
    print(f"{len(rows['id'])} grids, {len(content.getvalue()):,} bytes: {target}")


def changed(grids: Tensor) -> Tensor:
    """Return floats `[B, GRID, GRID, GRID]` of grids tilted, stretched and mirrored a little."""
    count, device = len(grids), grids.device
    axis = F.normalize(torch.randn(count, 3, device=device), dim=1)
    angle = torch.randn(count, device=device) * (_TILT * torch.pi / 180)
    cross = torch.linalg.cross(axis[:, None, :].expand(-1, 3, -1), torch.eye(3, device=device).expand(count, 3, 3))
    matrix = torch.linalg.matrix_exp(cross * angle[:, None, None])
    stretch = torch.exp(_STRETCH * torch.randn(count, 3, device=device))
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    # grid_sample's first coordinate is the last axis of the grid, z.
    stretch[:, 2] *= mirror
    theta = torch.cat([matrix * stretch[:, :, None], torch.zeros(count, 3, 1, device=device)], dim=2)
    where = F.affine_grid(theta, [count, 1, GRID, GRID, GRID], align_corners=False)
    return F.grid_sample(grids[:, None].float(), where, mode="nearest", align_corners=False)[:, 0]


def training_scores(scorer: torch.nn.Module, grids: Tensor) -> Tensor:
    """Return scores of all axes `[B, 6]`, each in one random turn about it; all of an object's are of one grid."""
    own = changed(grids)
    sides = []
    for up in UP_AXES:
        turns = turns_to_upright(up)
        sides.append(turned_grids(own, turns[int(torch.randint(len(turns), ()))]))
    return scorer(torch.cat(sides)).view(len(UP_AXES), -1).T


def all_scores(scorer: torch.nn.Module, grids: Tensor, batch: int = 128) -> Tensor:
    """Return scores of all axes `[N, 6]` of grids as they are."""
    with torch.no_grad():
        return torch.cat([scores_of_axes(scorer, part.float()) for part in grids.split(batch)]).float().cpu()


def measures(scores: Tensor, sources: np.ndarray) -> dict[str, Any]:
    """Return shares of right answers, of all six axes and of y against z, overall and for each source.

    Args:
        scores: `[N, 6]`, divided by the temperature.
        sources: `[N]`.
    """
    right = UP_AXES.index(STANDS_ALONG)
    six = (scores.argmax(1) == right).numpy()
    # How much likelier the right one is: seen from a file with y up, whose z is the other; and from one with z up.
    ahead = torch.stack([scores[:, right] - scores[:, UP_AXES.index(other)] for other in ("z", "-z")]).numpy()
    pairs = (ahead > 0).mean(0)

    def of(chosen: np.ndarray) -> dict[str, Any]:
        return {"objects": int(chosen.sum()), "six": float(six[chosen].mean()), "y or z": float(pairs[chosen].mean())}

    found = of(np.ones(len(six), bool))
    found["likelihood"] = float(F.log_softmax(scores, 1)[:, right].mean())
    found["without ldraw"] = of(sources != "ldraw")
    for least in (0.7, 0.9, 0.99):
        sure = np.abs(ahead) >= math.log(least / (1 - least))
        found[f"y or z, where at least {least:.0%} sure"] = {
            "share": float(sure.mean()),
            "right": float((ahead > 0)[sure].mean()) if sure.any() else None,
        }
    odds = math.log(USUAL["z"] / USUAL["y"])
    found["rules, by the share of z"] = {
        f"{share:.0%}": {
            "always z": share,
            "always y": 1 - share,
            "the shape": float((1 - share) * (ahead[0] > 0).mean() + share * (ahead[1] > 0).mean()),
            "the shape and what is usual": float(
                (1 - share) * (ahead[0] > odds).mean() + share * (ahead[1] > -odds).mean()
            ),
        }
        for share in (0.25, 0.5, 0.75, 0.9)
    }
    found["sources"] = {name: of(sources == name) for name in sorted(set(sources))}
    return found


def fitted_temperature(scores: Tensor) -> float:
    """Return what scores are divided by so that their probabilities fit, by the likelihood of the right axis."""
    right = torch.full((len(scores),), UP_AXES.index(STANDS_ALONG))
    tried = torch.logspace(-1, 1, 201)
    return float(tried[torch.stack([F.cross_entropy(scores / t, right) for t in tried]).argmin()])


def train(options: argparse.Namespace) -> None:
    """Train, measure and write."""
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    with np.load(options.grids, allow_pickle=False) as content:
        bits, source, split = content["bits"], content["source"], content["split"]
    grids = torch.from_numpy(np.unpackbits(bits, axis=1).reshape(-1, GRID, GRID, GRID)).bool()
    own = {name: torch.from_numpy(np.flatnonzero(split == name)) for name in ("train", "val", "test")}
    known, names = grids[own["train"]].to(device), source[own["train"].numpy()]
    lego = torch.from_numpy(names == "ldraw")
    weights = torch.where(
        lego, _SHARE_OF_LDRAW / max(int(lego.sum()), 1), (1 - _SHARE_OF_LDRAW) / max(int((~lego).sum()), 1)
    )
    scorer = UprightScorer(options.widths).to(device)
    optimizer = torch.optim.AdamW(scorer.parameters(), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps)
    right = torch.full((options.batch_size,), UP_AXES.index(STANDS_ALONG), device=device)
    began, log = time.perf_counter(), []
    for step in tqdm(range(1, options.steps + 1), unit="step", mininterval=5):
        chosen = torch.multinomial(weights, options.batch_size, replacement=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores = training_scores(scorer, known[chosen.to(device)])
        loss = F.cross_entropy(scores.float(), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % options.val_every == 0 or step == options.steps:
            scorer.eval()
            found = all_scores(scorer, grids[own["val"]].to(device))
            scorer.train()
            log.append(
                {
                    "step": step,
                    "loss": float(loss.detach()),
                    "val": float(F.log_softmax(found, 1)[:, UP_AXES.index(STANDS_ALONG)].mean()),
                }
            )
            print(log[-1], flush=True)
    seconds = time.perf_counter() - began
    scorer.eval()
    # As they ship.
    scorer.load_state_dict({name: value.half().float() for name, value in scorer.state_dict().items()})
    found = all_scores(scorer, grids[own["val"]].to(device))
    scorer.temperature.fill_(fitted_temperature(found))
    left_out = ("work", "output")
    result: dict[str, Any] = {
        "settings": {key: str(value) for key, value in vars(options).items() if key not in left_out}
    }
    result |= {"parameters": sum(p.numel() for p in scorer.parameters()), "seconds": seconds, "log": log}
    result["temperature"] = float(scorer.temperature)
    result["val"] = measures(found / scorer.temperature.cpu(), source[own["val"].numpy()])
    print(json.dumps({key: value for key, value in result["val"].items() if key != "sources"}, indent=1))
    options.output.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().cpu().contiguous() for name, value in scorer.state_dict().items()}
    write_safetensors(options.output / "upright.safetensors", state)
    write_json(options.output / "upright.json", result, indent=1)


def measure(options: argparse.Namespace) -> None:
    """Measure weights on one split, print and write."""
    with np.load(options.grids, allow_pickle=False) as content:
        chosen = content["split"] == options.split
        bits, source = content["bits"][chosen], content["source"][chosen]
    scorer = load_scorer(options.weights).to(resolve_device(options.device))
    grids = torch.from_numpy(np.unpackbits(bits, axis=1).reshape(-1, GRID, GRID, GRID)).to(scorer.temperature.device)
    result = measures(all_scores(scorer, grids) / scorer.temperature.cpu(), source)
    print(json.dumps(result, indent=1))
    if options.output:
        write_json(options.output, result, indent=1)


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    grids = commands.add_parser("grids", help="fill the grids of a pack's meshes")
    grids.add_argument("pack", type=Path)
    grids.add_argument("-o", "--output", type=Path, required=True)
    grids.set_defaults(work=lambda options: make_grids(options.pack, options.output))
    training = commands.add_parser("train", help="train on them")
    training.add_argument("grids", type=Path)
    training.add_argument("-o", "--output", type=Path, required=True)
    training.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    training.add_argument("--steps", type=int, default=6000)
    training.add_argument("--batch_size", type=int, default=256)
    training.add_argument("--lr", type=float, default=2e-3)
    training.add_argument("--weight_decay", type=float, default=0.05)
    training.add_argument("--val_every", type=int, default=500)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(work=train)
    measuring = commands.add_parser("measure", help="measure the shipped network, or another")
    measuring.add_argument("grids", type=Path)
    measuring.add_argument("--split", default="val")
    measuring.add_argument("--weights", type=Path, default=WEIGHTS)
    measuring.add_argument("-o", "--output", type=Path, help="a JSON file")
    measuring.set_defaults(work=measure)
    for command in (training, measuring):
        command.add_argument("--device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = make_parser().parse_args(argv)
    options.work(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
