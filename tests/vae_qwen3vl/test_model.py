"""The model: what goes in and comes out, gradients, state, errors. Its numbers are `test_slow_twin.py`'s."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch

PROMPTS = ["hi", "a longer prompt here"]
ANSWERS = ["a red robot.", "no"]


def split(feats, coords):
    return [
        (feats[coords[:, 0] == number], coords[coords[:, 0] == number][:, 1:])
        for number in range(int(coords[:, 0].max()) + 1)
    ]


@pytest.mark.parametrize("max_3d_tokens", [-1, 0, 7, 25, 1000])
@pytest.mark.parametrize("truncate_mode", ["pool", "head"])
def test_the_budget_is_kept_and_zero_or_less_means_none(build, make_codes, max_3d_tokens, truncate_mode):
    model = build(max_3d_tokens=max_3d_tokens, truncate_mode=truncate_mode)
    feats, coords = make_codes([5, 40])
    small, large = (model.count_3d_tokens(feats, coords) - 2).tolist()
    assert small == 5
    if max_3d_tokens <= 0 or max_3d_tokens >= 40:
        assert large == 40
    elif truncate_mode == "head":
        assert large == max_3d_tokens
    else:
        assert 0 < large <= max_3d_tokens
    assert model.get_3d_embeds(feats, coords)[1].sum(1).tolist() == [small, large]


def test_the_brief_usage_returns_the_codes_that_decode_takes(build, vae, make_batch, tokenizer):
    model = build(vae)
    text = tokenizer(["A shape.", "Another shape."], padding=True, return_tensors="pt")
    batch = make_batch([30, 80])
    outputs = model.forward_with_3d(
        input_ids=text["input_ids"], attention_mask=text["attention_mask"], labels=text["input_ids"], inputs_3d=batch
    )
    assert outputs["loss"].ndim == 0 and outputs.logits.shape[0] == 2
    assert model.vae_model.Decode(outputs["encoding_indices_3d"]).feats.shape[1] == 1

    embeds, mask, indices = model.get_3d_embeds_and_encoding_indices(batch)
    assert torch.equal(indices.feats, outputs["encoding_indices_3d"].feats)
    assert embeds.shape == (*mask.shape, 48)
    assert mask.sum(1).tolist() == torch.bincount(indices.coords[:, 0]).tolist()

    feats = vae.vq.embeddings.weight[indices.feats[:, 0].long()]
    again = model(**text, feats_3d=feats, coords_3d=indices.coords)
    torch.testing.assert_close(again.logits, outputs.logits)
    assert "encoding_indices_3d" not in again


def test_embeddings_of_a_batch_equal_those_of_its_samples(build, make_codes):
    model = build(use_3d_pos=True)
    feats, coords = make_codes([5, 40, 12])
    embeds, mask = model.get_3d_embeds(feats, coords)
    assert mask.sum(1).tolist() == [5, 40, 12]
    for number, (part, xyz) in enumerate(split(feats, coords)):
        alone, _ = model.get_3d_embeds(part, torch.cat([torch.zeros_like(xyz[:, :1]), xyz], dim=1))
        torch.testing.assert_close(embeds[number][mask[number]], alone[0])


def test_padded_features_with_a_mask_equal_the_sparse_form(build, processor, make_codes):
    model = build()
    feats, coords = make_codes([5, 40])
    padded, place, mask = torch.zeros(2, 40, 8), torch.zeros(2, 40, 4, dtype=torch.int32), torch.zeros(2, 40)
    for number, (part, xyz) in enumerate(split(feats, coords)):
        padded[number, : len(part)], place[number, : len(part), 1:], mask[number, : len(part)] = part, xyz, 1
    inputs = processor(PROMPTS, ANSWERS)
    dense = model(**inputs, feats_3d=padded, coords_3d=place, mask_3d=mask)
    torch.testing.assert_close(dense.loss, model(**inputs, feats_3d=feats, coords_3d=coords).loss)
    with pytest.raises(ValueError, match="mask_3d"):
        model(**inputs, feats_3d=padded, coords_3d=place)


def test_without_3d_it_is_the_language_model(build, processor):
    model = build()
    inputs = processor(PROMPTS, ANSWERS, objects=0)
    torch.testing.assert_close(model(**inputs).loss, model.vl_model(**inputs).loss)


def test_3d_reaches_the_answer_and_its_place_matters(build, processor, make_codes):
    model = build()
    inputs = processor(["hi"], ["a red robot."])
    feats, coords = make_codes([30])
    base = model(**inputs, feats_3d=feats, coords_3d=coords).logits[0, -1]
    other = model(**inputs, feats_3d=-feats, coords_3d=coords).logits[0, -1]
    moved = coords.clone()
    moved[0, 1:] = torch.tensor([11, 11, 11]) - moved[0, 1:]
    assert (base - other).abs().max() > 1e-3
    assert (base - model(**inputs, feats_3d=feats, coords_3d=moved).logits[0, -1]).abs().max() > 1e-5


def test_only_the_projector_trains(build, vae, processor, make_batch):
    model = build(vae, use_3d_pos=True).train()
    assert not vae.training
    model(**processor(PROMPTS, ANSWERS), inputs_3d=make_batch([20, 40])).loss.backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert trained == {f"projector.{name}" for name, _ in model.projector.named_parameters()}
    assert model.projector.marker_vectors.grad.any(1).tolist() == [True, True]
    assert all(value.grad is None and not value.requires_grad for value in model.vl_model.parameters())
    assert all(value.grad is None for value in [*vae.parameters(), vae.vq.embeddings.weight])


def test_checkpointed_activations_give_the_same_gradients(build, processor, make_codes):
    feats, coords = make_codes([5, 20])
    found = []
    for checkpointed in (False, True):
        model = build().train()
        if checkpointed:
            model.vl_model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.vl_model.modules())
        model(**processor(PROMPTS, ANSWERS), feats_3d=feats, coords_3d=coords, use_cache=False).loss.backward()
        found.append([value.grad.clone() for value in model.projector.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_a_batch_of_text_alone_takes_part_in_training_with_zero_gradients(build, processor):
    model = build(use_3d_pos=True, shape_tokens=2)
    model(**processor(PROMPTS, ANSWERS, objects=0)).loss.backward()
    for name, value in model.projector.named_parameters():
        assert value.grad is not None and not value.grad.any(), name


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_lora_trains_the_text_layers_and_comes_back_from_its_folder(
    build, processor, make_codes, make_vl, tmp_path, targets
):
    pytest.importorskip("peft")
    model = build()
    model.add_lora(r=2, alpha=4, dropout=0.0, targets=targets)
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    mlp = {"gate_proj", "up_proj", "down_proj"}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"} | (mlp if targets == "all" else set())
    inputs = {**processor(PROMPTS, ANSWERS)}
    feats, coords = make_codes([5, 20])
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs, feats_3d=feats, coords_3d=coords).loss.backward()
        optimizer.step()
    trained = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert {name for name in trained if not name.startswith("projector.")} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    assert not any("visual" in name for name in trained)

    model.vl_model.save_pretrained(tmp_path / "lora_final")
    model.save_projector(tmp_path / "projector_final.pt")
    kind = model.vl_model.config.model_type
    fresh = Qwen3VLWith3DBranch(latent_dim=8, use_vl_model=make_vl(kind)).eval()
    fresh.load_projector(tmp_path / "projector_final.pt")
    fresh.load_lora(tmp_path / "lora_final")
    with torch.no_grad():
        expected = model.eval()(**inputs, feats_3d=feats, coords_3d=coords).logits
        torch.testing.assert_close(fresh(**inputs, feats_3d=feats, coords_3d=coords).logits, expected)
    prompts = {**processor(PROMPTS), "feats_3d": feats, "coords_3d": coords, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(fresh.generate(**prompts), model.generate(**prompts))
    assert not any(value.requires_grad for value in fresh.vl_model.parameters())
    with pytest.raises(ValueError, match="already has LoRA"):
        fresh.add_lora()

    other = Qwen3VLWith3DBranch(latent_dim=8, use_vl_model=make_vl(kind, hidden=96))
    with pytest.raises(ValueError, match="doesn't fit"):
        other.load_lora(tmp_path / "lora_final")
    with pytest.raises(ValueError, match="no LoRA adapter"):
        other.load_lora(tmp_path)


def test_the_vae_stays_outside_state_mode_and_dtype(build, vae):
    model = build(vae)
    assert model.vae_model is vae
    assert not any("vae" in name or "vq" in name for name in model.state_dict())
    assert id(vae) not in {id(module) for module in model.modules()}
    model.train().to(torch.bfloat16)
    assert not vae.training and vae.weight.dtype == torch.float32 and not vae.weight.requires_grad
    other = copy.deepcopy(vae)
    model.vae_model = other
    assert model.vae_model is other and id(other) not in {id(module) for module in model.modules()}


def test_the_projector_starts_at_the_scale_of_the_text(build, make_codes):
    model = build()
    embeds, mask = model.get_3d_embeds(*make_codes([30]))
    text = model.vl_model.get_input_embeddings().weight
    torch.testing.assert_close(embeds[mask].square().mean(), text.square().mean(), rtol=1e-3, atol=0)
    assert 0.3 < model.projector.markers().square().mean() / text.square().mean() < 3


def test_a_saved_projector_rebuilds_the_model_around_it(build, vae, processor, make_batch, tmp_path):
    model = build(vae, merge=2, use_3d_pos=True, positions="sequential", max_3d_tokens=9)
    model.save_projector(tmp_path / "projector.safetensors", prompt="What is it?")
    plain = build(vae)
    plain.load_projector(tmp_path / "projector.safetensors")
    assert (plain.positions, plain.max_3d_tokens, plain.prompt) == ("sequential", 9, "What is it?")
    inputs, batch = processor(PROMPTS, ANSWERS), make_batch([20, 40])
    torch.testing.assert_close(plain(**inputs, inputs_3d=batch).logits, model(**inputs, inputs_3d=batch).logits)

    vae.vq.embeddings.weight.data.mul_(2)
    with pytest.raises(ValueError, match="load the VAE it was trained with"):
        plain.load_projector(tmp_path / "projector.safetensors")
    plain.load_projector(tmp_path / "projector.safetensors", verify_vae=False)


def test_a_projector_of_another_width_is_refused(build, make_vl, tmp_path):
    model = build()
    model.save_projector(tmp_path / "projector.safetensors")
    wide = Qwen3VLWith3DBranch(latent_dim=8, use_vl_model=make_vl("qwen2_vl", hidden=96))
    with pytest.raises(ValueError, match=r"width 48.*width 96"):
        wide.load_projector(tmp_path / "projector.safetensors")


def test_a_checkpoint_folder_opens_by_its_model_type(vl_model, tmp_path):
    vl_model.save_pretrained(tmp_path / "vl")
    model = Qwen3VLWith3DBranch(tmp_path / "vl", latent_dim=8)
    assert type(model.vl_model) is type(vl_model)
    assert next(model.vl_model.parameters()).dtype == torch.float32
    half = Qwen3VLWith3DBranch(tmp_path / "vl", latent_dim=8, torch_dtype=torch.bfloat16)
    assert next(half.vl_model.parameters()).dtype == torch.bfloat16


def test_half_precision_language_models_take_3d(build, vl_model, processor, make_codes):
    model = build()
    model.vl_model.to(torch.bfloat16)
    feats, coords = make_codes([5, 20])
    assert torch.isfinite(model(**processor(PROMPTS, ANSWERS), feats_3d=feats, coords_3d=coords).loss)


def test_another_kind_of_model_is_refused(tmp_path):
    import transformers

    transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'llama' model.*qwen2_vl and qwen3_vl"):
        Qwen3VLWith3DBranch(tmp_path)


def test_mismatches_are_named(build, vae, processor, make_codes, make_batch):
    model = build()
    feats, coords = make_codes([5, 20])
    inputs = processor(PROMPTS)
    with pytest.raises(ValueError, match="2 3D placeholders, but 3 3D objects"):
        model(**inputs, **dict(zip(("feats_3d", "coords_3d"), make_codes([2, 2, 2]), strict=True)))
    with pytest.raises(ValueError, match="2 3D placeholders, but 0 3D objects"):
        model(**inputs)
    with pytest.raises(ValueError, match="3 3D objects for 2 rows"):
        plain = processor(PROMPTS, objects=0)
        model(**plain, **dict(zip(("feats_3d", "coords_3d"), make_codes([2, 2, 2]), strict=True)))
    with pytest.raises(ValueError, match="latent_dim=8"):
        model(**inputs, feats_3d=feats[:, :5], coords_3d=coords)
    with pytest.raises(ValueError, match="belong together"):
        model(**inputs, feats_3d=feats)
    with pytest.raises(ValueError, match="needs a VAE"):
        model(**inputs, inputs_3d=make_batch([5, 5]))
    with pytest.raises(ValueError, match="not both"):
        build(vae)(**inputs, inputs_3d=make_batch([5, 5]), feats_3d=feats, coords_3d=coords)
    with pytest.raises(ValueError, match="'mrope' or 'sequential'"):
        build(positions="spiral")
    with pytest.raises(ValueError, match="'pool' or 'head'"):
        build(truncate_mode="tail")


@pytest.mark.parametrize("wrong", [-100, -1, 400, 151_936])
def test_ids_of_another_vocabulary_are_named_and_padding_may_be_anything(build, processor, make_codes, wrong):
    model = build()
    feats, coords = make_codes([5, 20])
    inputs = processor(PROMPTS)
    expected = model(**inputs, feats_3d=feats, coords_3d=coords).logits
    inputs["input_ids"][inputs["attention_mask"] == 0] = min(wrong, 399)  # a label's -100 as padding harms nobody
    assert torch.equal(model(**inputs, feats_3d=feats, coords_3d=coords).logits, expected)
    inputs["input_ids"][1, -1] = wrong
    with pytest.raises(ValueError, match=f"hold {wrong}, .* from 0 to 399"):
        model(**inputs, feats_3d=feats, coords_3d=coords)


@pytest.mark.parametrize("truncate_mode", ["pool", "head"])
@pytest.mark.parametrize("max_3d_tokens", [0, 4])
def test_a_missing_sample_is_named(build, vae, processor, make_batch, truncate_mode, max_3d_tokens):
    model = build(vae, truncate_mode=truncate_mode, max_3d_tokens=max_3d_tokens)
    prompts = ["one", "two", "three"]
    batch = make_batch([20, 20])
    gap = {**batch, "batch_idx": batch["batch_idx"] * 2}  # 0 and 2, but not 1
    calls = [
        lambda **kwargs: model.forward_with_3d(**processor(prompts), **kwargs),
        lambda **kwargs: model.generate(**processor(prompts), **kwargs),
        lambda inputs_3d: model.get_3d_embeds_and_encoding_indices(inputs_3d),
        lambda inputs_3d: model.describe(inputs_3d, processor=processor),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"samples 0..2, but no codes for \[1\]"):
            call(inputs_3d=gap)
    for call in calls[:2]:
        with pytest.raises(ValueError, match=r"3 3D placeholders, but 2 3D objects .* none for number 2, in row 2"):
            call(inputs_3d=batch)
    with pytest.raises(ValueError, match=r"2 3D objects for 3 rows .* none for row 2"):
        model(**processor(prompts, objects=0), inputs_3d=batch)


def test_a_batch_without_any_code_is_an_error_that_says_so(build, processor):
    nothing = {"feats_3d": torch.zeros(0, 8), "coords_3d": torch.zeros(0, 4)}
    for model in (build(), build(truncate_mode="head", merge=2)):
        with pytest.raises(ValueError, match="no codes at all"):
            model(**processor(["one"]), **nothing)
        with pytest.raises(ValueError, match="no codes at all"):
            model.get_3d_embeds(*nothing.values())


def test_a_padded_sample_without_rows_is_named(build, processor):
    model = build()
    feats, coords, mask = torch.randn(3, 4, 8), torch.zeros(3, 4, 4), torch.ones(3, 4)
    coords[..., 1] = torch.arange(4)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"no codes for \[1\]"):
        model(**processor(["one", "two", "three"]), feats_3d=feats, coords_3d=coords, mask_3d=mask)


class Stranger:
    """No module at all: what somebody else's VAE may look like, with a memory of what it made and was given."""

    def __init__(self):
        self.vq = SimpleNamespace(embeddings=nn.Embedding(64, 11))
        self.made, self.decoded = [], []

    def Encode(self, batch):
        cells = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"] // 8], dim=1).unique(dim=0)
        cells = cells.flip(0)  # in its own order
        codes = SimpleNamespace(feats=(cells.sum(1, keepdim=True) % 64).float(), coords=cells.int())
        self.made.append(codes)
        return codes

    def Decode(self, encoding_indices):
        self.decoded.append(encoding_indices)
        return encoding_indices


def test_a_foreign_vae_serves_the_whole_branch_and_gets_its_own_codes_back(vl_model, make_batch, processor):
    stranger = Stranger()
    model = Qwen3VLWith3DBranch(vae_model=stranger, use_vl_model=vl_model, latent_dim=16).eval()
    assert model.projector.latent_dim == 11
    batch, inputs = make_batch([9, 50]), processor(PROMPTS, ANSWERS)
    outputs = model.forward_with_3d(**inputs, inputs_3d=batch)
    outputs["loss"].backward()
    assert stranger.vq.embeddings.weight.grad is None
    model.vae_model.Decode(outputs["encoding_indices_3d"])
    assert stranger.decoded[0] is stranger.made[0]

    embeds, mask, indices = model.get_3d_embeds_and_encoding_indices(batch)
    assert indices is stranger.made[1]
    codes = indices.feats[:, 0].long()
    order = sorted(range(len(codes)), key=lambda row: indices.coords[row][[0, 3, 2, 1]].tolist())
    expected = model.projector(stranger.vq.embeddings.weight[codes[order]])
    torch.testing.assert_close(embeds[mask], expected)

    answers = model.generate(**processor(PROMPTS), inputs_3d=batch, max_new_tokens=3, do_sample=False)
    feats = stranger.vq.embeddings.weight[codes].detach()
    same = {"feats_3d": feats, "coords_3d": indices.coords, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(answers, model.generate(**processor(PROMPTS), **same))


def test_images_keep_their_own_positions_beside_3d(build, make_codes):
    model = build()
    ids = torch.tensor([[7, 3, 5, 5, 5, 5, 4, 9, 10], [7, 8, 3, 5, 5, 5, 5, 4, 11]])
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    pixels = torch.randn(32, 3 * 2 * 16, generator=torch.Generator().manual_seed(0))
    alone = model.vl_model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        image_grid_thw=grid,
        mm_token_type_ids=(ids == 5).int(),
    )
    merged = model(ids, pixel_values=pixels, image_grid_thw=grid)
    torch.testing.assert_close(merged.logits, alone.logits, rtol=1e-4, atol=1e-4)

    feats, coords = make_codes([6, 9])
    after = torch.cat([ids, torch.tensor([[PLACEHOLDER_3D, 12]] * 2)], dim=1)
    inputs = model.build_inputs(after, feats_3d=feats, coords_3d=coords, image_grid_thw=grid)
    plain, _ = model.vl_model.model.get_rope_index(ids, (ids == 5).int(), image_grid_thw=grid)
    assert torch.equal(inputs.position_ids[:, :, : ids.shape[1]], plain)
    base = int(plain[:, 0].max()) + 1
    block = inputs.position_ids[:, 0, ids.shape[1] + 1 : ids.shape[1] + 7]
    mine = model.tokens_3d(feats, coords).coords
    assert torch.equal(block, base + 1 + mine[mine[:, 0] == 0][:, [3, 2, 1]].T)
    assert inputs.position_ids[0, 0, ids.shape[1] + 8] == block.max() + 2
