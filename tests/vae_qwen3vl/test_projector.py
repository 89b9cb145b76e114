"""The projector: shapes, scale, positions, and its file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vae_qwen3vl.projector import PositionEncoder3D, Projector3D
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector


def rms(rows):
    return rows.square().mean(-1).sqrt()


def test_one_layer_is_a_linear_and_more_are_an_mlp():
    assert isinstance(Projector3D(16, 32, num_layers=1).proj, nn.Linear)
    layers = list(Projector3D(16, 32, num_layers=3).proj)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


def test_rows_of_any_leading_shape_pass():
    projector = Projector3D(16, 32)
    assert projector(torch.randn(5, 16)).shape == (5, 32)
    assert projector(torch.randn(2, 5, 16)).shape == (2, 5, 32)


@pytest.mark.parametrize("use_3d_pos", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_output_has_the_rms_of_the_text_embeddings_whatever_the_codebook_scale(make_codes, scale, use_3d_pos):
    projector = Projector3D(8, 48, num_layers=2, use_3d_pos=use_3d_pos)
    projector.output_rms.fill_(0.03)
    feats, coords = make_codes([40])
    tokens = projector.project(feats * scale, coords)
    torch.testing.assert_close(rms(tokens.embeds), torch.full((40,), 0.03), rtol=1e-3, atol=0)


@pytest.mark.parametrize("mode", ["sinusoidal", "learned"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float16])
def test_every_coordinate_has_its_own_position_vector(mode, dtype):
    side = torch.arange(0, 65, 8)
    coords = torch.cartesian_prod(side, side, side)
    vectors = PositionEncoder3D(64, max_coord=64, mode=mode)(coords.to(dtype))
    assert vectors.dtype == torch.float32
    assert len(vectors.detach().round(decimals=4).unique(dim=0)) == len(coords)


def test_position_vectors_ignore_the_batch_column():
    encoder = PositionEncoder3D(30)
    coords = torch.tensor([[3, 1, 2, 5]])
    assert torch.equal(encoder(coords), encoder(coords[:, 1:]))


def test_learned_positions_use_three_small_tables_and_refuse_what_lies_outside():
    encoder = PositionEncoder3D(12, max_coord=9, mode="learned")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 3 * 10 * 12
    with pytest.raises(ValueError, match="max_coord=9"):
        encoder(torch.tensor([[0, 10, 0]]))


@pytest.mark.parametrize("merge", [1, 2, 4])
def test_a_batch_of_objects_projects_as_each_alone(make_codes, merge):
    torch.manual_seed(0)
    projector = Projector3D(8, 48, num_layers=2, use_3d_pos=True, merge=merge)
    feats, coords = make_codes([60, 9, 33])
    tokens = projector.project(feats, coords, max_tokens=30)
    for number in range(3):
        mine = coords[:, 0] == number
        alone = coords[mine].clone()
        alone[:, 0] = 0
        single = projector.project(feats[mine], alone, max_tokens=30)
        at = tokens.coords[:, 0] == number
        torch.testing.assert_close(tokens.embeds[at], single.embeds)
        assert torch.equal(tokens.coords[at][:, 1:], single.coords[:, 1:])


def test_merged_cells_all_matter_and_so_does_emptiness(make_codes):
    torch.manual_seed(0)
    projector = Projector3D(8, 48, merge=2)
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    feats = torch.randn(2, 8)
    base = projector.project(feats, coords).embeds
    assert base.shape == (1, 48)
    changed = feats.clone()
    changed[1] += 1
    assert not torch.allclose(projector.project(changed, coords).embeds, base)
    zero = torch.cat([feats, torch.zeros(1, 8)])  # a third cell whose code is the zero vector is not an empty cell
    third = torch.cat([coords, torch.tensor([[0, 0, 1, 0]])])
    assert not torch.allclose(projector.project(zero, third).embeds, base)


def test_half_precision_features_project_in_the_projectors_precision(make_codes):
    projector = Projector3D(8, 48)
    feats, coords = make_codes([5])
    assert projector.project(feats.half(), coords).embeds.dtype == torch.float32


def test_users_mistakes_are_named(make_codes):
    feats, coords = make_codes([5])
    with pytest.raises(ValueError, match="projector_layers"):
        Projector3D(8, 48, num_layers=0)
    with pytest.raises(ValueError, match="merge"):
        Projector3D(8, 48, merge=3)
    with pytest.raises(ValueError, match="latent_dim=16"):
        Projector3D(16, 48).project(feats, coords)
    with pytest.raises(ValueError, match="use_3d_pos"):
        Projector3D(8, 48, use_3d_pos=True)(feats)
    with pytest.raises(ValueError, match="width 72"):
        Projector3D(8, 48, merge=2)(feats)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_rebuilds_the_projector_it_came_from(tmp_path, make_codes, suffix):
    about = ProjectorDescription(
        latent_dim=8, hidden_size=48, num_layers=3, merge=2, use_3d_pos=True, pos_mode="learned", prompt="What?"
    )
    projector = about.build()
    projector.output_rms.fill_(0.05)
    path = tmp_path / f"projector_final{suffix}"
    save_projector(path, projector, about)
    loaded, found = load_projector(path)
    assert found == about
    feats, coords = make_codes([30])
    assert torch.equal(loaded.project(feats, coords).embeds, projector.project(feats, coords).embeds)
    assert torch.equal(loaded.markers(), projector.markers())


def test_the_pt_file_is_a_plain_state_dict(tmp_path):
    about = ProjectorDescription(latent_dim=8, hidden_size=48, num_layers=1)
    projector = about.build()
    save_projector(tmp_path / "projector_final.pt", projector, about)
    state = torch.load(tmp_path / "projector_final.pt", weights_only=True)
    about.build().load_state_dict(state)
    assert state["proj.weight"].shape == (48, 8)


def test_files_that_are_no_projector_are_refused(tmp_path):
    about = ProjectorDescription(latent_dim=8, hidden_size=48, num_layers=1)
    with pytest.raises(ValueError, match="does not exist"):
        load_projector(tmp_path / "missing.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a projector file"):
        load_projector(tmp_path / "junk.safetensors")
    (tmp_path / "junk.pt").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a projector file that can be read safely"):
        load_projector(tmp_path / "junk.pt")
    torch.save({"proj.weight": print}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="not a projector file that can be read safely"):
        load_projector(tmp_path / "pickle.pt")
    torch.save(about.build().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="does not say"):
        load_projector(tmp_path / "bare.pt")
    save_projector(tmp_path / "wrong.pt", Projector3D(9, 48), about)
    with pytest.raises(ValueError, match=r"1 tensors differ: proj\.weight"):
        load_projector(tmp_path / "wrong.pt")


def test_tokens_of_the_whole_shape_stand_in_front(make_codes):
    feats, coords = make_codes([40, 25, 60])
    plain = Projector3D(8, 32, 2, merge=2)
    whole = Projector3D(8, 32, 2, merge=2, shape_tokens=3)
    whole.load_state_dict({**whole.state_dict(), **plain.state_dict()})
    parts, tokens = plain.project(feats, coords), whole.project(feats, coords)
    starts = torch.searchsorted(tokens.coords[:, 0].contiguous(), torch.arange(3))
    front = torch.zeros(len(tokens.coords), dtype=torch.bool)
    for start in starts.tolist():
        front[start : start + 3] = True
    assert (tokens.coords[front][:, 1:] == 0).all()
    torch.testing.assert_close(tokens.embeds[~front], parts.embeds)
    assert torch.equal(tokens.coords[~front], parts.coords)
    own = tokens.embeds[front].unflatten(0, (3, 3))
    assert not torch.allclose(own[0], own[1])
    torch.testing.assert_close(rms(own), torch.ones(3, 3))
    last = coords[:, 0] == 2
    alone = whole.project(feats[last], coords[last] - torch.tensor([2, 0, 0, 0]))
    torch.testing.assert_close(alone.embeds[:3], own[2])
    few = whole.project(feats, coords, 8)
    assert int(torch.bincount(few.coords[:, 0]).max()) <= 8
    torch.testing.assert_close(few.embeds[:3], own[0])
    with pytest.raises(ValueError, match="shape_tokens must be 0 or more, not -1"):
        Projector3D(8, 32, shape_tokens=-1)
    with pytest.raises(ValueError, match="of 3 3D tokens 3 of the whole shape leave none for its parts"):
        whole.project(feats, coords, 3)
