"""A plain, slow twin of the language branch: one sample at a time, loops over rows, no batching, no padding.

It borrows the trained numbers (projector weights, language model) and does everything else itself: writes the chat,
groups and pools cells, projects, places, counts positions and sums the loss. It uses no code of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OBJECT = None
"""Stands in a row of ids for one object."""
_SPOT = "@@OBJECT@@"

Place = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One object: its cells and their features."""

    feats: Tensor
    """`[n, D]`."""
    cells: list[Place]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an object becomes tokens."""

    max_tokens: int = 0
    mode: str = "pool"
    positions: str = "mrope"


def shapes_of(feats: Tensor, coords: Tensor) -> list[Shape]:
    """Take a batch of objects apart."""
    rows = coords.tolist()
    return [
        Shape(
            feats=torch.stack([feats[at] for at, row in enumerate(rows) if row[0] == number]),
            cells=[(row[1], row[2], row[3]) for row in rows if row[0] == number],
        )
        for number in range(max(row[0] for row in rows) + 1)
    ]


def write_chat(
    tokenizer: Any, parts: list[str | None], answer: str | None = None
) -> tuple[list[int | None], list[int]]:
    """Write one user turn (text and objects) and its answer; return ids and labels."""
    content = "".join(_SPOT if part is OBJECT else part for part in parts)
    chat = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ids: list[int | None] = []
    for number, text in enumerate(prompt.split(_SPOT)):
        ids += [OBJECT] * (number > 0)
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    labels = [-100] * len(ids)
    if answer is not None:
        reply = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        end = tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids, labels = [*ids, *reply, *end], [*labels, *reply, *[-100] * len(end)]
    return ids, labels


def tokens_of(projector: Any, shape: Shape, settings: Settings) -> list[tuple[Tensor, Place]]:
    """Return an object's tokens, (vector [H], place), in reading order."""
    merge, budget = projector.merge, settings.max_tokens
    blocks: dict[Place, dict[Place, Tensor]] = {}
    for (x, y, z), feature in zip(shape.cells, shape.feats, strict=True):
        inside = blocks.setdefault((x // merge, y // merge, z // merge), {})
        inside[x % merge, y % merge, z % merge] = feature
    order = sorted(blocks, key=lambda place: place[::-1])
    if settings.mode == "head" and budget > 0:
        order = order[:budget]
    lifted = {place: _lift(projector, blocks[place], merge) for place in order}
    shift = 0
    while settings.mode == "pool" and budget > 0 and len({_shifted(place, shift) for place in order}) > budget:
        shift += 1
    groups: dict[Place, list[Place]] = {}
    for place in order:
        groups.setdefault(_shifted(place, shift), []).append(place)
    tokens = []
    for key in sorted(groups, key=lambda place: place[::-1]):
        members = groups[key]
        mean = sum(lifted[place] for place in members) / len(members)
        x, y, z = (sum(place[axis] for place in members) // len(members) for axis in range(3))
        tokens.append((_finish(projector, mean, (x, y, z)), (x, y, z)))
    return tokens


def _shifted(place: Place, shift: int) -> Place:
    return place[0] >> shift, place[1] >> shift, place[2] >> shift


def _lift(projector: Any, inside: dict[Place, Tensor], merge: int) -> Tensor:  # [H]
    if merge == 1:
        row = inside[0, 0, 0]
    else:
        corner = [(x, y, z) for x in range(merge) for y in range(merge) for z in range(merge)]
        empty = torch.zeros(projector.latent_dim)
        row = torch.cat([inside.get(cell, empty) for cell in corner])
        row = torch.cat([row, torch.tensor([float(cell in inside) for cell in corner])])
    linears = [layer for layer in projector.proj.modules() if isinstance(layer, nn.Linear)]
    for number, linear in enumerate(linears):
        if number:
            row = row * 0.5 * (1 + torch.erf(row / math.sqrt(2)))  # GELU
        row = linear.weight @ row + linear.bias
    return row / row.square().mean().sqrt()


def _finish(projector: Any, row: Tensor, place: Place) -> Tensor:  # [H]
    if projector.use_3d_pos:
        row = row + projector.position_gain * torch.tensor(_waves(place, projector.hidden_size))
    return row / row.square().mean().sqrt() * projector.output_rms * (1 + projector.output_gain)


def _waves(place: Place, width: int) -> list[float]:
    count = width // 6
    values = []
    for coordinate in place:
        angles = [coordinate / 10000 ** (step / count) for step in range(count)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return values + [0.0] * (width - len(values))


def run(
    branch: Any,
    ids: list[int | None],
    labels: list[int],
    shapes: list[Shape],
    settings: Settings,
    images: list[tuple[list[int], Tensor]] = (),  # (t, h, w in patches; pixel values)
) -> tuple[Tensor, list[int]]:
    """Read one sample; return logits `[S', V]` and labels. A row without objects of its own has them in front."""
    if OBJECT not in ids:
        ids, labels = [OBJECT] * len(shapes) + ids, [-100] * len(shapes) + labels
    model = branch.vl_model
    table, config = model.get_input_embeddings().weight, model.config
    start, end = branch.projector.marker_vectors * branch.projector.output_rms
    embeds: list[Tensor] = []
    places: list[list[int]] = []
    targets: list[int] = []
    queue, grids = list(shapes), [grid for grid, _ in images]
    at = 0  # the next text position
    number = 0
    while number < len(ids):
        token = ids[number]
        if token is OBJECT:
            tokens = tokens_of(branch.projector, queue.pop(0), settings)
            embeds += [start, *[vector for vector, _ in tokens], end]
            spots = [[at + 1 + z, at + 1 + y, at + 1 + x] for _, (x, y, z) in tokens]
            if settings.positions == "sequential":
                spots = [[at + 1 + count] * 3 for count in range(len(tokens))]
            last = max(max(spot) for spot in spots) + 1
            places += [[at] * 3, *spots, [last] * 3]
            targets += [-100] * (len(tokens) + 2)
            at = last + 1
            number += 1
        elif token == config.image_token_id:
            merge = config.vision_config.spatial_merge_size
            frames, height, width = grids.pop(0)
            height, width = height // merge, width // merge
            spots = [[at + t, at + h, at + w] for t in range(frames) for h in range(height) for w in range(width)]
            embeds += [table[token]] * len(spots)
            places += spots
            targets += [-100] * len(spots)
            at += max(frames, height, width)
            number += len(spots)
        else:
            embeds.append(table[token])
            places.append([at] * 3)
            targets.append(labels[number])
            at += 1
            number += 1
    assert not queue and not grids
    pixels = {}
    if images:
        pixels["pixel_values"] = torch.cat([values for _, values in images])
        pixels["image_grid_thw"] = torch.tensor([grid for grid, _ in images])
    positions = torch.tensor([[place[axis] for place in places] for axis in range(3)])[:, None]  # [3, 1, S']
    logits = model(inputs_embeds=torch.stack(embeds)[None], position_ids=positions, **pixels).logits[0]
    return logits, targets


def loss(results: list[tuple[Tensor, list[int]]]) -> Tensor:
    """Return the mean cross-entropy of all supervised tokens, one after the other."""
    total, count = torch.zeros(()), 0
    for logits, targets in results:
        for at, target in enumerate(targets[1:]):
            if target != -100:
                total = total + logits[at].logsumexp(0) - logits[at, target]
                count += 1
    return total / count


def compare(outputs: Any, results: list[tuple[Tensor, list[int]]], trained: nn.Module) -> None:
    """Hold a batch to its samples: logits, loss, and the gradients of what is trained."""
    for row, (logits, _) in enumerate(results):
        torch.testing.assert_close(outputs.logits[row, : len(logits)], logits, rtol=1e-4, atol=1e-4)
    expected = loss(results)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-5, atol=1e-6)
    names, values = zip(*trained.named_parameters(), strict=True)
    found, wanted = torch.autograd.grad(outputs.loss, values), torch.autograd.grad(expected, values)
    for name, ours, its in zip(names, found, wanted, strict=True):
        assert its.any(), name
        torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-6, msg=lambda told, name=name: f"{name}: {told}")
