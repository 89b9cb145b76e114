"""Images beside shapes in one prompt, through Qwen's own image processor and the model's own vision tower."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import slow_twin as twin
from engine_chats import chat
from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", params=[("qwen2_vl", 14), ("qwen3_vl", 16)], ids=["qwen2_vl", "qwen3_vl"])
def branch(request, make_vl):
    kind, patch = request.param
    torch.manual_seed(5)
    vl_model = make_vl(kind, patch_size=patch)
    return Qwen3VLWith3DBranch(use_vl_model=vl_model, latent_dim=8, projector_num_layers=2, max_3d_tokens=9).eval()


@pytest.fixture(scope="module")
def image_processor(branch):
    """Qwen's, as its checkpoints configure it, but for smaller images."""
    from transformers import Qwen2VLImageProcessor

    patch = branch.vl_model.config.vision_config.patch_size
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    return Qwen2VLImageProcessor(patch_size=patch, size=size)


@pytest.fixture
def processor(tokenizer, image_processor):
    return Processor3D(tokenizer, image_processor)


def picture(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


CHATS = [
    chat(picture(60, 30), " shows ", None, "?"),
    chat(None, picture(50, 90, 1), "and", picture(33, 33, 2), "or", None, "which is it?"),
    chat("only words"),
    chat(None, "no picture"),
]
ANSWERS = ["a robot.", "no", "yes.", "a chair."]
SIZES = [12, 5, 20, 3]


def test_the_processor_writes_as_many_image_tokens_as_the_vision_tower_gives(processor, branch):
    inputs = processor(CHATS, ANSWERS, objects=0)
    assert inputs["image_grid_thw"].shape == (3, 3)
    assert len(inputs["pixel_values"]) == inputs["image_grid_thw"].prod(1).sum()
    with torch.no_grad():
        seen = branch.vl_model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    features = [len(image) for image in seen.pooler_output]
    runs, length = [], 0
    for token in inputs["input_ids"].flatten().tolist():
        if token != branch.vl_model.config.image_token_id and length:
            runs.append(length)
        length = length + 1 if token == branch.vl_model.config.image_token_id else 0
    assert runs == features
    assert (inputs["input_ids"] == PLACEHOLDER_3D).sum() == 4
    assert not torch.isin(inputs["labels"], torch.arange(3, 7)).any()


def twin_results(branch, inputs, feats, coords):
    """Run the twin on each row of encoded inputs."""
    shapes, results, pixel = twin.shapes_of(feats, coords), [], 0
    grids = inputs["image_grid_thw"].tolist()
    config = branch.vl_model.config
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        ids = inputs["input_ids"][row][mask].tolist()
        labels = inputs["labels"][row][mask].tolist() if "labels" in inputs else [-100] * len(ids)
        mine = [shapes.pop(0) for _ in range(ids.count(PLACEHOLDER_3D))]
        images = []
        for _ in range(ids.count(config.vision_start_token_id)):
            t, h, w = grids.pop(0)
            images.append(((t, h, w), inputs["pixel_values"][pixel : pixel + t * h * w]))
            pixel += t * h * w
        ids = [twin.OBJECT if token == PLACEHOLDER_3D else token for token in ids]
        results.append(twin.run(branch, ids, labels, mine, twin.Settings(max_tokens=9), images))
    assert not shapes and not grids
    return results


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_images_and_shapes_equals_the_slow_twin(processor, branch, make_codes, side):
    feats, coords = make_codes(SIZES)
    inputs = processor(CHATS, ANSWERS, objects=0, padding_side=side)
    outputs = branch(**inputs, feats_3d=feats, coords_3d=coords)
    twin.compare(outputs, twin_results(branch, inputs, feats, coords), branch.projector)
    assert all(value.grad is None for value in branch.vl_model.parameters())


def test_both_the_image_and_the_shape_reach_the_answer(processor, branch, make_codes):
    feats, coords = make_codes([6])
    inputs = processor(chat(picture(40, 40), None, "?"))
    other = processor(chat(picture(40, 40, 9), None, "?"))
    with torch.no_grad():
        base = branch(**inputs, feats_3d=feats, coords_3d=coords).logits[0, -1]
        assert (base - branch(**other, feats_3d=feats, coords_3d=coords).logits[0, -1]).abs().max() > 1e-4
        assert (base - branch(**inputs, feats_3d=-feats, coords_3d=coords).logits[0, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_cached_generation_with_images_and_shapes_equals_full_forwards(processor, branch, make_codes, search):
    feats, coords = make_codes(SIZES)
    inputs = processor(CHATS, objects=0)
    given = {"feats_3d": feats, "coords_3d": coords, "max_new_tokens": 5, **GREEDY, **search}
    out = branch.generate(**inputs, **given, return_dict_in_generate=True, output_logits=True, output_scores=True)
    answered = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    answered["input_ids"] = torch.cat([inputs["input_ids"], out.sequences], dim=1)
    answered["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(out.sequences)], dim=1)
    with torch.no_grad():
        results = twin_results(branch, answered, feats, coords)
    for row, (logits, _) in enumerate(results):
        predicted = logits[-6:-1]  # at each new token
        if search:
            picked = predicted.log_softmax(1).gather(1, out.sequences[row][:, None]).sum()
            torch.testing.assert_close(out.sequences_scores[row], picked / 5, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(predicted.argmax(1), out.sequences[row])
            step = torch.stack([logits[row] for logits in out.logits])
            torch.testing.assert_close(step, predicted, rtol=1e-4, atol=1e-4)


def test_images_alone_are_read_as_the_language_model_reads_them(processor, branch):
    inputs = processor([chat(picture(60, 30), "?"), chat("a longer", picture(30, 90))], objects=0)
    kinds = (inputs["input_ids"] == branch.vl_model.config.image_token_id).int()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours = branch(**inputs).logits
        own = branch.vl_model(**inputs, mm_token_type_ids=kinds).logits
    for row, mask in enumerate(real):
        torch.testing.assert_close(ours[row, : int(mask.sum())], own[row][mask], rtol=1e-4, atol=1e-4)


def test_mistakes_with_images_are_named(processor, tokenizer, image_processor):
    with pytest.raises(ValueError, match="images=True"):
        Processor3D(tokenizer)(CHATS)
    with pytest.raises(ValueError, match="user turns only, not in those of the assistant"):
        processor([*chat("x"), {"role": "assistant", "content": chat(picture(9, 9))[0]["content"]}])

    class NoVision:
        chat_template = tokenizer.chat_template
        all_special_ids = tokenizer.all_special_ids

        def get_added_vocab(self):
            return {"<|im_end|>": 2}

        def apply_chat_template(self, *args, **kwargs):
            return tokenizer.apply_chat_template(*args, **kwargs)

    with pytest.raises(ValueError, match="reads no images"):
        Processor3D(NoVision(), image_processor)(CHATS)


def test_a_checkpoint_folder_brings_its_image_processor(tokenizer, image_processor, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    loaded = Processor3D.from_pretrained(tmp_path, images=True)
    expected = Processor3D(tokenizer, image_processor)(CHATS)
    for name, value in loaded(CHATS).items():
        assert torch.equal(value, expected[name]), name
    assert Processor3D.from_pretrained(tmp_path).image_processor is None
