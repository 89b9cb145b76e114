"""The transformer over an object's 3D tokens: objects apart, places, and the projector around it."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector
from vae_qwen3vl.shape_encoder import ShapeEncoder


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values: what new layers add is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5)
    return module.eval()


@pytest.fixture(scope="module")
def projector() -> Projector3D:
    return stirred(Projector3D(8, 48, num_layers=2, merge=2, shape_tokens=2, encoder_layers=2))


@pytest.mark.parametrize("most", [0, 20])
def test_an_object_sees_itself_alone(projector, make_codes, most):
    feats, coords = make_codes([60, 9, 33])
    tokens = projector.project(feats, coords, max_tokens=most)
    for number in range(3):
        mine = coords[:, 0] == number
        alone = coords[mine].clone()
        alone[:, 0] = 0
        single = projector.project(feats[mine], alone, max_tokens=most)
        at = tokens.coords[:, 0] == number
        torch.testing.assert_close(tokens.embeds[at], single.embeds, rtol=1e-4, atol=1e-5)
        assert torch.equal(tokens.coords[at][:, 1:], single.coords[:, 1:])
        assert not most or len(single.coords) <= most


def test_every_token_sees_every_other(projector, make_codes):
    feats, coords = make_codes([40])
    before = projector.project(feats, coords).embeds
    changed = feats.clone()
    changed[17] += 3
    after = projector.project(changed, coords).embeds
    assert bool((before - after).abs().amax(1).gt(1e-6).all())


def test_a_place_is_told_by_offsets_and_mirror_images_differ(projector, make_codes):
    feats, coords = make_codes([40])
    tokens = projector.project(feats, coords).embeds
    moved = coords + torch.tensor([0, 4, 2, 6], dtype=coords.dtype)
    torch.testing.assert_close(projector.project(feats, moved).embeds, tokens, rtol=1e-3, atol=1e-4)
    rows = stirred(ShapeEncoder(2, 64))
    places = torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0]])
    mirrored = places * torch.tensor([1, -1, 1, 1]) + torch.tensor([0, 3, 0, 0])
    with torch.no_grad():
        rows.layers[0].qkv.weight.mul_(4)  # so that what is seen depends on where it is
        values = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        assert float((rows(values, places) - rows(values, mirrored)).abs().max()) > 0.01


def test_new_layers_change_nothing(make_codes):
    rows, coords = torch.randn(30, 256), make_codes([20, 10])[1]
    torch.testing.assert_close(ShapeEncoder(3)(rows, coords), ShapeEncoder(0)(rows, coords))


def test_blocks_are_those_of_all_tokens_before_the_last_map(projector, make_codes):
    feats, coords = make_codes([50, 20])
    hidden, places = projector.blocks(feats, coords)
    tokens = projector.project(feats, coords)
    parts = torch.cat([torch.nonzero(tokens.coords[:, 0] == n).squeeze(1)[2:] for n in range(2)])
    assert torch.equal(tokens.coords[parts], places)
    again = projector._scaled(projector.out(hidden))
    torch.testing.assert_close(tokens.embeds[parts], again, rtol=1e-4, atol=1e-5)


def test_no_object_hangs_on_every_parameter(projector):
    tokens = projector.no_tokens(torch.device("cpu"))
    assert tokens.embeds.shape == (0, 48)
    tokens.embeds.sum().backward()
    assert [name for name, p in projector.named_parameters() if p.grad is None] == ["marker_vectors"]
    projector.zero_grad()


def test_eight_bits_a_weight_change_tokens_little(projector, make_codes, tmp_path):
    about = ProjectorDescription(
        latent_dim=8, hidden_size=48, num_layers=2, merge=2, shape_tokens=2, encoder_layers=2
    )
    paths = [tmp_path / f"{name}.safetensors" for name in ("whole", "packed")]
    for path in paths:
        save_projector(path, projector, about, packed=path.stem == "packed")
    assert paths[1].stat().st_size < 0.27 * paths[0].stat().st_size
    again, _ = load_projector(paths[1])
    codes = make_codes([50])
    with torch.no_grad():
        before, after = (p.eval().project(*codes).embeds for p in (projector, again))
    assert float((after - before).norm() / before.norm()) < 0.03
    assert torch.equal(again.marker_vectors, projector.marker_vectors.half().float())


def test_a_file_brings_the_encoder_back(projector, make_codes, tmp_path):
    about = ProjectorDescription(
        latent_dim=8, hidden_size=48, num_layers=2, merge=2, shape_tokens=2, encoder_layers=2
    )
    save_projector(tmp_path / "projector.safetensors", projector, about)
    again, told = load_projector(tmp_path / "projector.safetensors")
    assert told == about
    codes = make_codes([30])
    assert torch.equal(again.eval().project(*codes).embeds, projector.project(*codes).embeds)
