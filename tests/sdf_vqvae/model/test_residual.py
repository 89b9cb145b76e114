"""The residual network: steps that lose nothing, and a decoder that needs codes and cells only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_tokenizer as tiny
from sdf_vqvae.model.checkpoint import load_inner_levels, save_vae
from sdf_vqvae.model.residual import ResidualDecoder, kept_children
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.residual import ResidualBlock, ResidualUp, channel_to_space, space_to_channel
from sdf_vqvae.sparse.tensor import SparseTensor


def random_tensor(seed: int, count: int = 60, channels: int = 3) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(2 * 16**3, generator=generator)[:count].sort().values
    coords = torch.stack([places // 4096, places // 256 % 16, places // 16 % 16, places % 16], 1).int()
    return SparseTensor(torch.randn(count, channels, generator=generator), coords, side=16, batch_size=2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_space_to_channel_and_back_loses_nothing(seed: int) -> None:
    x = random_tensor(seed)
    cells = space_to_channel(x)
    there = space_to_channel(x.replace(torch.ones(len(x), 1)))
    back = channel_to_space(cells.feats, cells.coordinates, there.feats > 0)
    order = torch.argsort(back.coordinates.keys)
    assert torch.equal(back.coords[order], x.coords)
    assert torch.equal(back.feats[order], x.feats)
    assert bool(x.coordinates.contains(back.coords).all())


def test_children_know_their_cells_and_neighbors() -> None:
    x = random_tensor(1)
    cells, _ = x.coordinates.coarser()
    kept = torch.rand(len(cells), 8, generator=torch.Generator().manual_seed(0)) < 0.4
    fine = cells.finer(kept)
    assert len(fine) == int(kept.sum())
    halved = fine.coords.clone()
    halved[:, 1:] >>= 1
    assert torch.equal(cells.coords[fine.ancestors(1)], halved)
    again = CoordinateSet(fine.coords[torch.argsort(fine.keys)], fine.side, 2)
    expected = again.neighbors() >= 0
    assert torch.equal((fine.neighbors() >= 0)[torch.argsort(fine.keys)], expected)


def test_blocks_begin_as_the_identity_and_steps_as_their_shortcut() -> None:
    torch.manual_seed(0)
    x = random_tensor(2, channels=8)
    assert torch.equal(ResidualBlock(8, 4.0)(x).feats, x.feats)
    up = ResidualUp(8, 4)
    torch.nn.init.zeros_(up.linear.weight)
    torch.nn.init.zeros_(up.linear.bias)
    assert abs(float((up(x, None).feats.sum() - 4 * x.feats.sum()).detach())) < 1e-3


def test_every_cell_keeps_a_child() -> None:
    logits = torch.full((5, 8), -9.0) + torch.arange(8) / 10
    assert kept_children(logits).sum(1).tolist() == [1] * 5


def test_training_decodes_the_true_voxels_whatever_is_predicted() -> None:
    vae = tiny.vae()
    batch = tiny.batch(20.0)
    out = vae(batch)
    seen = vae.field_tensor(batch)
    decoded = out["reconst_x"]
    keys = set(map(tuple, decoded.coords.tolist()))
    assert all(tuple(row) in keys for row in seen.coords.tolist())
    truth = [int(level.truth.sum()) for level in out["occupancy"]]
    assert truth == [len(seen.coordinates.coarser()[0].coarser()[0]), len(seen.coordinates.coarser()[0])]


def test_decoding_needs_codes_and_cells_only_and_computes_less_than_all() -> None:
    vae = tiny.vae().eval()
    assert isinstance(vae.decoder, ResidualDecoder)
    cells = vae.Encode(tiny.batch(20.0))
    for head in vae.decoder.occupancy:
        torch.nn.init.constant_(head[1].bias, -9.0)
        torch.nn.init.zeros_(head[1].weight)
    decoded = vae.Decode(SparseTensor(cells.feats, cells.coords, side=cells.side))
    assert decoded.side == tiny.SIDE
    assert len(decoded) == 8 * len(cells)  # one child of every cell, one of that, and its eight voxels
    assert set(map(tuple, (decoded.coords // torch.tensor([1, 8, 8, 8])).tolist())) == set(
        map(tuple, cells.coords.tolist())
    )


def test_a_finer_network_starts_from_a_coarser_one(tmp_path: Path) -> None:
    coarse = tiny.vae()
    save_vae(coarse, tmp_path)
    field = {**tiny.args()["field"], "resolution": 2 * tiny.SIDE}
    fine = tiny.vae(level_channels=[8, 16, 32], level_blocks=[1, 1, 1], field=field)
    report = load_inner_levels(fine, tmp_path / "model.safetensors")
    starts = ("encoder.stem.", "encoder.levels.0.", "encoder.downsample.0.", "decoder.upsample.2.")
    starts += ("decoder.occupancy.2.", "decoder.levels.2.", "decoder.out_norm.", "decoder.out_layer.")
    trained = {name for name in fine.state_dict() if name.startswith(("encoder.", "decoder."))}
    assert set(report.missing) == {name for name in trained if name.startswith(starts)}
    # Inside the new level both compute the same.
    x = tiny_level_input(fine)
    for number in range(2):
        ours = fine.encoder.downsample[number + 1](fine.encoder.levels[number + 1](x))
        theirs = coarse.encoder.downsample[number](coarse.encoder.levels[number](x))
        assert torch.equal(ours.feats, theirs.feats)
        x = theirs
    assert torch.equal(fine.encoder.run_trunk(x).feats, coarse.encoder.run_trunk(x).feats)
    assert torch.equal(fine.decoder.upsample[1].linear.weight, coarse.decoder.upsample[1].linear.weight)
    assert torch.equal(fine.vq.embeddings.weight, coarse.vq.embeddings.weight)


def tiny_level_input(fine: SparseSDFVQVAE) -> SparseTensor:
    """Return features `[N, 16]` on the finest grid of the coarser network."""
    index, _ = tiny.field(10.0)
    cells = torch.unique(torch.nn.functional.pad(index.int() // 2, (1, 0)), dim=0)
    feats = torch.randn(len(cells), 16, generator=torch.Generator().manual_seed(0))
    return SparseTensor(feats, cells, side=fine.config.data_resolution // 4)


def places_in(patch: int) -> torch.Tensor:
    """Return where the voxels of a patch lie, -1..1 along each axis, in the order of the network. `[patch^3, 3]`"""
    voxels = CoordinateSet(torch.zeros(1, 4, dtype=torch.int32), side=1)
    while voxels.side < patch:
        voxels = voxels.finer()
    return (voxels.coords[:, 1:] + 0.5) / patch * 2 - 1


def test_patches_are_read_and_answered_voxel_by_voxel() -> None:
    """A stem that passes one voxel on, and answers that differ by voxel, say where each comes from and goes to."""
    vae = tiny.vae(**tiny.PATCHES).eval()
    field = vae.field_tensor(tiny.batch(20.0))
    seen: dict[str, Any] = {}
    vae.encoder.stem.register_forward_pre_hook(lambda _, args: seen.update(read=args[0]))
    torch.nn.init.zeros_(vae.decoder.out_layer.weight)
    vae.decoder.out_layer.bias.data = torch.arange(64.0) / 64
    with torch.no_grad():
        decoded = vae.decode_latent(vae.latent_of(field))
    patches = field.coordinates.coarser()[0].coarser()[0]
    place = ((places_in(4) + 1) * 2).int()  # [64, 3]
    known = dict(zip(map(tuple, field.coords.tolist()), field.feats[:, 0].tolist(), strict=True))
    for row in (0, 7, len(patches) - 1):
        batch, *corner = patches.coords[row].tolist()
        for voxel, (value, mark) in enumerate(seen["read"][row].view(64, 2).tolist()):
            at = (batch, *(4 * c + o for c, o in zip(corner, place[voxel].tolist(), strict=True)))
            assert (value, mark) == ((known[at], 1) if at in known else (0, 0))
    answers = (torch.atanh(decoded.feats[:, 0].double()) * 64).round().int()
    assert torch.equal(decoded.coords[:, 1:] % 4, place[answers])


def test_larger_patches_start_between_the_voxels_of_smaller_ones(tmp_path: Path) -> None:
    """A plane that the coarser network answers or reads is the same plane for the finer one, in finer voxels."""
    plane = torch.tensor([0.3, -0.2, 0.5])
    coarse = tiny.vae(resolution=4, field={**tiny.args()["field"], "resolution": 32})
    coarse.decoder.out_layer.weight.data[:, 0] = places_in(2) @ plane + 0.1
    save_vae(coarse, tmp_path)
    fine = tiny.vae(resolution=4, patch_size=4, num_embeddings=64)
    report = load_inner_levels(fine, tmp_path / "model.safetensors")
    assert report.missing == ["vq.embeddings.weight"]
    answered = fine.decoder.out_layer.weight.data[:, 0]
    torch.testing.assert_close(answered, 2 * (places_in(4) @ plane + 0.1))
    read = [
        vae.encoder.stem(torch.stack([scale * (places_in(patch) @ plane + 0.1), torch.ones(patch**3)], 1).flatten())
        for vae, patch, scale in ((coarse, 2, 1), (fine, 4, 2))
    ]
    torch.testing.assert_close(read[1], read[0])
    changed = {"encoder.stem.weight", "decoder.out_layer.weight", "decoder.out_layer.bias"}
    ours, theirs = fine.state_dict(), coarse.state_dict()
    same = [name for name in theirs if not name.startswith("vq.") and name not in changed]
    assert all(torch.equal(ours[name], theirs[name]) for name in same)


def test_codes_stay_where_there_are_as_many(tmp_path: Path) -> None:
    coarse = tiny.vae(resolution=4, field={**tiny.args()["field"], "resolution": 32})
    save_vae(coarse, tmp_path)
    fine = tiny.vae(resolution=4, patch_size=4)
    assert load_inner_levels(fine, tmp_path / "model.safetensors").missing == []
    assert torch.equal(fine.vq.embeddings.weight, coarse.vq.embeddings.weight)


def test_more_blocks_begin_as_the_identity(tmp_path: Path) -> None:
    few = tiny.vae().eval()
    save_vae(few, tmp_path)
    more = tiny.vae(level_blocks=[2, 1], level_blocks_decoder=[3, 1]).eval()
    report = load_inner_levels(more, tmp_path / "model.safetensors")
    assert {name.split(".conv.")[0] for name in report.missing if ".conv." in name} == {
        "encoder.levels.0.1",
        "decoder.levels.1.1",
        "decoder.levels.1.2",
    }
    codes = few.Encode(tiny.batch(20.0))
    assert torch.equal(more.Encode(tiny.batch(20.0)).feats, codes.feats)
    assert torch.equal(more.Decode(codes).feats, few.Decode(codes).feats)


@pytest.mark.parametrize(
    ("side", "more"),
    [
        (64, {"level_blocks": [0, 1]}),
        (128, {"level_channels": [16, 16], "patch_size": 4}),
        (256, {"level_channels": [8, 16, 32], "level_blocks": [1, 1, 1], "patch_size": 4}),
    ],
    ids=["fewer_blocks", "other_widths", "patches_and_a_level"],
)
def test_a_network_that_is_no_inner_part_is_refused(tmp_path: Path, side: int, more: dict[str, Any]) -> None:
    save_vae(tiny.vae(), tmp_path)
    fine = tiny.vae(**{"field": {**tiny.args()["field"], "resolution": side}, **more})
    with pytest.raises(ValueError, match="not the inner part"):
        load_inner_levels(fine, tmp_path / "model.safetensors")
