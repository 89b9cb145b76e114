"""An exported checkpoint answers as the model it was made of, and what can't be exported is refused."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_models
from vae_qwen3vl.export.exported import PROJECTOR, PlainExport, export_model
from vae_qwen3vl.export.shape_vocabulary import ShapeVocabulary, in_order
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

QUESTION = "a red robot? Or <|im_end|> a chair"


def ours(model, processor, shape, question) -> dict:
    """The arguments of our model for a question about an object."""
    feats = codebook_vectors(shape.codes, model.vae_model)
    return {**processor(question), "feats_3d": feats, "coords_3d": joined_coords([shape.coords])}


@torch.inference_mode()
@pytest.mark.parametrize("question", [None, QUESTION])
def test_logits_and_answers_of_the_plain_checkpoint_are_ours(branch, export, processor, shape, question):
    model = branch()
    exported = export(model)
    plain = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.float32).eval()
    asked = question or "Describe this 3D shape in one sentence:"
    for seed, codes in enumerate((1, 30, 200)):
        some = shape(codes, seed)
        inputs = ours(model, processor, some, asked)
        ids = torch.tensor([exported.prompt_ids(some, question)])
        expected, found = model(**inputs).logits, plain(ids).logits
        words = len(processor.tokenizer)
        torch.testing.assert_close(found[..., :words], expected[..., :words], atol=1e-5, rtol=1e-5)
        # Rows of the table that are no tokens may win in a model of random weights; the new words took their places.
        greedy = {"do_sample": False, "max_new_tokens": 12, "suppress_tokens": list(range(words, 400))}
        said = plain.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, ids.shape[1] :]
        assert said.tolist() == model.generate(**inputs, **greedy)[0].tolist()


def test_the_text_of_a_request_is_read_as_the_ids_of_the_prompt(branch, export, shape):
    exported, some = export(branch()), shape(40)
    body = exported.request(some, "A chair with four legs?", max_tokens=7)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
    assert ids == exported.prompt_ids(some, "A chair with four legs?")
    assert (body["temperature"], body["max_tokens"]) == (0, 7)
    assert tokenizer.decode(ids, skip_special_tokens=True).count("code_") == 0


def test_an_object_is_written_by_z_then_y_then_x(branch, export, shape):
    exported, some = export(branch()), shape(40)
    order = sorted(range(40), key=lambda row: some.coords[row].tolist()[::-1])
    assert in_order(some) == some.codes[order].tolist()
    words = ShapeVocabulary(exported.processor.tokenizer)
    ids = words.ids(in_order(some))
    tokens = exported.processor.tokenizer.convert_ids_to_tokens(ids)
    assert tokens[0] == "<|shape_start|>"
    assert tokens[-1] == "<|shape_end|>"
    assert tokens[1:-1] == [f"<|code_{code}|>" for code in in_order(some)]
    assert exported.processor.tokenizer(words.text(in_order(some)))["input_ids"] == ids


def test_text_that_spells_a_code_stays_text_among_ids_and_is_refused_in_a_chat(branch, export, shape):
    exported, some = export(branch()), shape(3)
    ids = exported.prompt_ids(some, "is it <|code_5|>?")
    assert exported.vocabulary.codes[5] not in ids[-20:]
    with pytest.raises(ValueError, match="spells a special token"):
        exported.request(some, "is it <|code_5|>?")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"merge": 2}, "merge 2: a token holds up to 8 codes"),
        ({"use_3d_pos": True}, "use_3d_pos"),
        ({"shape_tokens": 2}, "shape_tokens 2"),
        ({"positions": "mrope"}, "positions mrope"),
    ],
)
def test_a_projector_that_does_not_fit_is_refused_with_reason_and_way_out(branch, export, tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        export(branch(**settings))
    assert "--objects prompt_embeds" in str(refusal.value)
    assert not (tmp_path / "plain").exists()


@torch.inference_mode()
def test_over_the_budget_heads_are_cut_as_ours_and_pooled_objects_refused(branch, export, processor, shape):
    some = shape(50)
    model = branch(max_3d_tokens=20, truncate_mode="head")
    exported = export(model)
    ids = exported.prompt_ids(some, "a chair?")
    expected = model(**ours(model, processor, some, "a chair?")).logits
    assert expected.shape[1] == len(ids)
    with pytest.raises(ValueError, match="50 codes, but the projector was trained to read at most 20 and to average"):
        export(branch(max_3d_tokens=20)).request(some)


def test_an_object_longer_than_the_context_is_refused(branch, export, shape):
    with pytest.raises(ValueError, match="511 codes, more than the 512 positions"):
        export(branch(max_3d_tokens=0)).prompt_ids(shape(511))


@pytest.mark.parametrize("objects", ["tokens", "prompt_embeds"])
def test_codes_of_another_tokenizer_are_refused(branch, export, shape, objects):
    import dataclasses

    exported = export(branch(), objects=objects)
    with pytest.raises(ValueError, match="made by the VAE 000000000000"):
        exported.request(dataclasses.replace(shape(3), vae_hash="0" * 64))


def test_an_export_is_replaced_and_nothing_else_is(branch, export, tokenizer, tmp_path):
    export(branch())
    export(branch(), objects="prompt_embeds")
    assert PlainExport(tmp_path / "plain").vocabulary is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="no earlier export"):
        export_model(branch(), tokenizer, tmp_path / "mine")
    with pytest.raises(ValueError, match="no exported checkpoint"):
        PlainExport(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_projector_lies_where_no_engine_takes_it_for_weights(branch, export):
    folder = export(branch()).folder
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert (folder / PROJECTOR).is_file()


def test_a_vocabulary_is_added_once(branch, export, tmp_path):
    exported = export(branch())
    with pytest.raises(ValueError, match="already"):
        export_model(branch(), exported.processor.tokenizer, tmp_path / "again")


def test_a_tokenizer_that_engines_would_read_otherwise_is_refused(branch, export, family, tmp_path):
    from tokenizers import pre_tokenizers

    if family != "qwen2":
        pytest.skip("transformers has its own way for Qwen2 alone")
    other = tiny_models.build_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match="splits text otherwise"):
        export_model(branch(), other, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


# -- prompt embeddings ----------------------------------------------------------------------------------------------


def as_a_server_reads(exported: PlainExport, plain, body: dict) -> torch.Tensor:
    """What vLLM makes of a chat: the template's tokens, and the tensor of the part in their midst. `[1, T, H]`"""
    (message,) = body["messages"]
    (part,) = message["content"]
    assert part["type"] == "prompt_embeds"
    embeds = torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    chat = [{"role": "user", "content": "<tool_call>"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    place = ids.index(tokenizer.convert_tokens_to_ids("<tool_call>"))
    before, after = (plain.get_input_embeddings()(torch.tensor(side)) for side in (ids[:place], ids[place + 1 :]))
    return torch.cat([before, embeds, after])[None]


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings", [{}, {"merge": 2, "shape_tokens": 1}, {"use_3d_pos": True}, {"max_3d_tokens": 20}]
)
def test_prompt_embeddings_give_our_logits_whatever_the_projector(branch, export, processor, shape, settings):
    model = branch(**settings)
    exported = export(model, objects="prompt_embeds")
    plain = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.float32).eval()
    some = shape(60)
    found = plain(inputs_embeds=as_a_server_reads(exported, plain, exported.request(some, QUESTION))).logits
    torch.testing.assert_close(found, model(**ours(model, processor, some, QUESTION)).logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_mrope_positions_are_exported_with_a_warning_since_engines_count(branch, export, processor, shape, caplog):
    model = branch(positions="mrope")
    exported = export(model, objects="prompt_embeds")
    assert "trained with positions mrope" in caplog.text
    plain = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.float32).eval()
    some = shape(60)
    found = plain(inputs_embeds=as_a_server_reads(exported, plain, exported.request(some, QUESTION))).logits
    assert not torch.allclose(found, model(**ours(model, processor, some, QUESTION)).logits, atol=1e-2)


def test_embeddings_have_no_ids_and_need_the_vae(branch, export, shape):
    exported = export(branch(), objects="prompt_embeds")
    with pytest.raises(ValueError, match="no tokens but embeddings"):
        exported.prompt_ids(shape(3))
    with pytest.raises(ValueError, match="give the VAE"):
        PlainExport(exported.folder).request(shape(3))


# -- the default language model -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_logits_on_the_default_language_model_are_ours(default_lm, small_vae, shape):
    from vae_qwen3vl.export.plain_model import plain_model
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.processor import Processor3D

    model = Qwen3VLWith3DBranch(str(default_lm), vae_model=small_vae, positions="sequential").eval()
    some, processor = shape(60), Processor3D.from_pretrained(default_lm)
    vectors = model.projector(small_vae.vq.embeddings.weight)  # [K, H]
    plain = plain_model(
        model.vl_model, {49152 + row: vector for row, vector in enumerate([*model.projector.markers(), *vectors])}
    )
    inputs = ours(model, processor, some, QUESTION)
    ids = inputs["input_ids"][0].tolist()
    place = ids.index(-200)
    block = [49152, *(49154 + code for code in in_order(some)), 49153]
    found = plain(torch.tensor([[*ids[:place], *block, *ids[place + 1 :]]])).logits
    expected = model(**inputs).logits
    assert float(expected.abs().max()) > 10
    torch.testing.assert_close(found[..., :49152], expected, atol=1e-4, rtol=1e-5)
    assert bool((found.argmax(-1) == expected.argmax(-1)).all())
