"""Train the network that says which way is up, from a pack of meshes that stand along +y.

    python scripts/train_upright.py grids PACK -o outputs_upright/grids.npz      # minutes on one core
    python scripts/train_upright.py train outputs_upright/grids.npz -o outputs_upright

The first fills the grids that the network looks at, for every mesh of the pack; the second trains on the split
`train` and writes `upright.safetensors` with, in `upright.json`, how often the right axis is found on `val` (and on
`test` with `--test`, for what ships). The loss is the cross-entropy of the right axis among all six, each seen in a
random turn about it. Training grids are tilted, stretched and mirrored a little, anew each time.
"""

from __future__ import annotations

import argparse
import io
import json
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

from sdf_vqvae.archives import write_safetensors
from sdf_vqvae.data import MeshPack
from sdf_vqvae.runtime import atomic_path, resolve_device
from sdf_vqvae.upright import (
    GRID,
    UP_AXES,
    UprightScorer,
    scores_of_axes,
    surface_grid,
    turned_grids,
    turns_to_upright,
)

STANDS_ALONG = "y"
_SHARE_OF_LDRAW = 0.35
_TILT, _STRETCH = 5.0, 0.1
_TWO_WAYS = (("y", "z"), ("y", "-z"))


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
    """Return shares of right answers, of all six axes and of y against z, overall and for each source."""
    right = UP_AXES.index(STANDS_ALONG)
    six = (scores.argmax(1) == right).numpy()
    pairs = np.stack([(scores[:, right] > scores[:, UP_AXES.index(b)]).numpy() for _, b in _TWO_WAYS]).mean(0)
    found: dict[str, Any] = {"objects": len(six), "six": float(six.mean()), "y or z": float(pairs.mean())}
    plain = sources != "ldraw"
    found["without ldraw"] = {
        "objects": int(plain.sum()),
        "six": float(six[plain].mean()),
        "y or z": float(pairs[plain].mean()),
    }
    sure = F.softmax(scores[:, [right, UP_AXES.index("z")]], 1).max(1).values.numpy()
    for least in (0.7, 0.9, 0.99):
        chosen = sure >= least
        found[f"y or z, where at least {least:.0%} sure"] = {
            "share": float(chosen.mean()), "right": float(pairs[chosen].mean()) if chosen.any() else None
        }  # fmt: skip
    found["sources"] = {
        name: {
            "objects": int((sources == name).sum()),
            "six": float(six[sources == name].mean()),
            "y or z": float(pairs[sources == name].mean()),
        }
        for name in sorted(set(sources))
    }
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
                    "val six": float((found.argmax(1) == right[0].cpu()).float().mean()),
                }
            )
            print(log[-1], flush=True)
    seconds = time.perf_counter() - began
    scorer.eval()
    # As they ship.
    scorer.load_state_dict({name: value.half().float() for name, value in scorer.state_dict().items()})
    found = all_scores(scorer, grids[own["val"]].to(device))
    scorer.temperature.fill_(fitted_temperature(found))
    result: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(options).items() if key != "work"}}
    result |= {"parameters": sum(p.numel() for p in scorer.parameters()), "seconds": seconds, "log": log}
    result["temperature"] = float(scorer.temperature)
    for name in ("val", "test") if options.test else ("val",):
        scores = all_scores(scorer, grids[own[name]].to(device)) / scorer.temperature.cpu()
        result[name] = measures(scores, source[own[name].numpy()])
        print(name, json.dumps({key: value for key, value in result[name].items() if key != "sources"}, indent=1))
    options.output.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().cpu().contiguous() for name, value in scorer.state_dict().items()}
    write_safetensors(options.output / "upright.safetensors", state)
    with atomic_path(options.output / "upright.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


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
    training.add_argument("--widths", type=int, nargs="+", default=(24, 48, 96, 192))
    training.add_argument("--steps", type=int, default=6000)
    training.add_argument("--batch_size", type=int, default=256)
    training.add_argument("--lr", type=float, default=2e-3)
    training.add_argument("--weight_decay", type=float, default=0.05)
    training.add_argument("--val_every", type=int, default=500)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device")
    training.add_argument("--test", action="store_true", help="measure on test too: once, for what ships")
    training.set_defaults(work=train)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = make_parser().parse_args(argv)
    options.work(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
