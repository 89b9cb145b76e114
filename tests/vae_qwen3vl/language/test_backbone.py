"""How the language model is run: compiled, under autocast, with adapters merged, in which dtype."""

from __future__ import annotations

import json

import pytest
import torch

from vae_qwen3vl.language import adapters
from vae_qwen3vl.language.backbone import compile_layers, fuse_norms, inference_dtype, text_layers
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.training.losses import AlignmentObjective


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_compiled_layers_do_the_same_at_every_length_and_share_one_graph(make_vl, make_codes, kind):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl(kind), latent_dim=8, merge=2)
    model.add_lora(4, dropout=0.0)

    def step(rows: int, length: int) -> list[torch.Tensor]:
        feats, coords = make_codes([9] * rows)
        ids = torch.arange(10, 10 + rows * length).view(rows, length)
        model.zero_grad()
        loss = AlignmentObjective(model)(input_ids=ids, labels=ids, feats_3d=feats, coords_3d=coords)["loss"]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    sizes = [(2, 12), (3, 17), (4, 9)]
    plain = [step(*size) for size in sizes]
    names = list(model.state_dict())
    compile_layers(model.vl_model, backend="aot_eager")
    for expected, size in zip(plain, sizes, strict=True):
        for found, wanted in zip(step(*size), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    assert list(model.state_dict()) == names
    assert not torch._dynamo.utils.counters["graph_break"]


def test_adapters_that_leave_casts_to_autocast_compute_the_same(make_vl, make_codes):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8, merge=2)
    model.add_lora(2, dropout=0.0)
    model.vl_model.get_base_model().to(torch.bfloat16)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value, dtype=torch.float32) * 0.1
    seen: list[torch.dtype] = []
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    ids = torch.arange(10, 34).view(2, 12)
    feats, coords = make_codes([5, 40])
    found = []
    for active in (False, True):
        model.zero_grad()
        seen.clear()
        with adapters.casts_left_to_autocast(model.vl_model, active), torch.autocast("cpu", torch.bfloat16):
            loss = AlignmentObjective(model)(input_ids=ids, labels=ids, feats_3d=feats, coords_3d=coords)["loss"]
        loss.backward()
        grads = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
        found.append((loss.detach(), grads))
        assert set(seen) == {torch.bfloat16 if active else torch.float32}
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=2e-3)


def test_adapters_merged_into_the_weights_answer_alike(make_vl, make_codes):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8, merge=2).eval()
    ids = torch.arange(10, 34).view(2, 12)
    feats, coords = make_codes([5, 40])
    given = {"input_ids": ids, "feats_3d": feats, "coords_3d": coords}
    untouched = model(**given).logits
    model.add_lora(2)
    model.eval()
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * 0.1
    beside = model(**given).logits
    model.vl_model = adapters.merge_lora(model.vl_model)
    assert not any("lora_" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(**given).logits, beside, rtol=1e-4, atol=1e-4)
    assert (beside - untouched).abs().max() > 0.01
    assert adapters.merge_lora(model.vl_model) is model.vl_model


@pytest.fixture
def saved_adapter(make_vl, tmp_path):
    """A folder of trained adapters on all linear maps of a text layer."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = adapters.add_lora(make_vl("qwen2_vl"), 3, alpha=7, targets="all")
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * 0.1
    adapters.save_lora(adapted, tmp_path / "lora", "tiny")
    return tmp_path / "lora"


def merged_states(make_vl, folder, dtype):
    """Return the language model's weights with the adapters added by us, and by peft."""
    ours = adapters.load_merged(make_vl("qwen2_vl").to(dtype), folder)
    theirs = adapters.merge_lora(adapters.load_lora(make_vl("qwen2_vl").to(dtype), folder))
    return ours.state_dict(), theirs.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_added_without_peft_give_the_weights_that_peft_gives(make_vl, saved_adapter, dtype, monkeypatch):
    untouched = make_vl("qwen2_vl").to(dtype).state_dict()
    ours, theirs = merged_states(make_vl, saved_adapter, dtype)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    layers = sum(not torch.equal(ours[name], untouched[name]) for name in ours)
    assert layers == 7 * len(list(text_layers(make_vl("qwen2_vl"))))
    monkeypatch.setattr(adapters, "load_lora", None)
    adapters.load_merged(make_vl("qwen2_vl"), saved_adapter)  # and peft had no part in it


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 2}}, {"r": 2}])
def test_adapters_that_are_not_plain_are_left_to_peft(make_vl, saved_adapter, change):
    file = saved_adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if "r" in change:
        with pytest.raises(ValueError, match="doesn't fit this language model: 28 tensors differ, first base_model"):
            adapters.load_merged(make_vl("qwen2_vl"), saved_adapter)
        return
    ours, theirs = merged_states(make_vl, saved_adapter, torch.float32)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("device", "known", "expected"),
    [
        ("cuda", {}, torch.bfloat16),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ("cpu", {"avx2": True}, torch.float32),
        ("mps", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_answers_are_computed_in_bfloat16_where_the_device_has_it(monkeypatch, device, known, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert inference_dtype(torch.device(device)) == expected


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_fused_norms_compute_the_same_with_the_same_weights(make_vl, kind):
    model = make_vl(kind)
    ids = torch.arange(10, 40).view(2, 15)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    with torch.no_grad():
        wanted, names = model(input_ids=ids).logits, list(model.state_dict())
        norms = sum(hasattr(module, "variance_epsilon") for module in model.model.language_model.modules())
        fuse_norms(model)
        found = model(input_ids=ids).logits
    fused = [module for module in model.modules() if isinstance(module, torch.nn.RMSNorm)]
    assert len(fused) == norms == {"qwen2_vl": 5, "qwen3_vl": 9}[kind]
    assert list(model.state_dict()) == names and not any(p.is_meta for p in model.parameters())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
