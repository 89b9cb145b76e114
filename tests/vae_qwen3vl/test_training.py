"""Training teaches captions from codes, and what it saves rebuilds the model."""

from pathlib import Path

import pytest
import torch

from vae_qwen3vl.code_cache import CodeCache
from vae_qwen3vl.data import CaptionedCodes, captions_of
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.training import AlignmentOptions, AlignmentTrainer

CAPTIONS = {"a": ["A red robot."], "b": ["A chair with legs."], "c": ["One shape."], "d": ["System of four."]}


class Tokenizer64:
    """Stands for the VAE of a cache: it has nothing but a fingerprint."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        return self.name


@pytest.fixture
def cache() -> CodeCache:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0, 30, 20, 40, 25])
    total = int(sizes.sum())
    cells = torch.randperm(12**3, generator=generator)[:total]
    return CodeCache(
        codes=torch.randint(0, 64, (total,), generator=generator, dtype=torch.int32),
        coords=torch.stack([cells // 144, cells // 12 % 12, cells % 12], dim=1).short(),
        splits=torch.cumsum(sizes, 0),
        ids=tuple(CAPTIONS),
        failures={"e": "the mesh has no faces"},
        vae_hash="one",
    )


def make_model(vl_model, vae) -> Qwen3VLWith3DBranch:
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=vl_model, vae_model=vae, projector_num_layers=2, merge=4)
    model.add_lora(r=4, alpha=8, dropout=0.0)
    return model


def test_a_cache_survives_its_file_and_a_stale_one_is_refused(cache: CodeCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "codes.safetensors")
    again = CodeCache.load(tmp_path / "codes.safetensors")
    assert (again.ids, again.failures, again.vae_hash) == (cache.ids, cache.failures, "one")
    for i in range(len(cache)):
        assert all(torch.equal(x, y) for x, y in zip(cache.object(i), again.object(i), strict=True))
    again.check(Tokenizer64("one"))
    with pytest.raises(ValueError, match="stale"):
        again.check(Tokenizer64("two"))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a code cache"):
        CodeCache.load(tmp_path / "bad.safetensors")


def test_captions_are_the_records_own_words_as_sentences() -> None:
    assert captions_of({"captions": ["corner sofa", "Is it?"]}) == ["Corner sofa.", "Is it?"]
    assert captions_of({"captions": [], "name": "box"}) == ["Box."]


def test_the_control_gives_every_caption_another_objects_codes(cache: CodeCache) -> None:
    data = CaptionedCodes(cache, CAPTIONS, dict.fromkeys(CAPTIONS, 1.0))
    batch = data.batch([0, 1, 2], torch.Generator().manual_seed(0))
    control = batch.shuffled()
    assert control.captions == batch.captions
    for number, donor in ((0, 2), (1, 0), (2, 1)):
        assert torch.equal(control.codes[control.coords[:, 0] == number], batch.codes[batch.coords[:, 0] == donor])


def test_objects_without_captions_are_never_drawn(cache: CodeCache) -> None:
    data = CaptionedCodes(cache, {"b": CAPTIONS["b"]}, dict.fromkeys(CAPTIONS, 1.0))
    assert set(data.draw(20, torch.Generator().manual_seed(0)).captions) == {"A chair with legs."}
    with pytest.raises(ValueError, match="caption"):
        CaptionedCodes(cache, {}, {})


def test_overfitting_lowers_the_loss_but_not_the_controls_and_the_folder_rebuilds_the_model(
    cache: CodeCache, vl_model, vae, tokenizer, tmp_path: Path
) -> None:
    import copy

    untouched = copy.deepcopy(vl_model)
    model = make_model(vl_model, vae)
    options = AlignmentOptions(
        max_steps=60, batch_size=4, lr_projector=1e-2, lr_lora=1e-2, warmup_steps=5, log_every=10
    )
    trainer = AlignmentTrainer(model, Processor3D(tokenizer), options, tmp_path)
    data = CaptionedCodes(cache, CAPTIONS, dict.fromkeys(CAPTIONS, 1.0))
    everything = data.batch([0, 1, 2, 3], torch.Generator().manual_seed(0))
    log = trainer.run(data, everything)
    assert log[-1]["held_out"] < 0.7 * log[0]["held_out"]  # a frozen random language model allows no more
    assert log[-1]["held_out_shuffled"] > log[-1]["held_out"] + 1
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n and "projector" not in n)

    again = Qwen3VLWith3DBranch(use_vl_model=untouched, vae_model=vae)
    again.load_projector(tmp_path / "projector.safetensors")
    again.load_lora(tmp_path / "lora")
    for each in (model, again):
        each.eval()
    rebuilt = AlignmentTrainer(again, Processor3D(tokenizer), options, tmp_path)
    with torch.no_grad():
        # The adapter is stored in bfloat16.
        assert float(rebuilt.loss(everything)) == pytest.approx(float(trainer.loss(everything)), rel=0.05, abs=0.02)
