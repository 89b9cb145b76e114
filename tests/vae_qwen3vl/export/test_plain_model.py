"""A text model under another name computes the same, and words that are only read are never said."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.export.plain_model import plain_model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(7, 380, (2, 40), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_a_plain_model_has_the_same_logits(vl_model, family, ids):
    plain = plain_model(vl_model)
    assert plain.config.model_type == family
    assert torch.equal(plain(input_ids=ids).logits, vl_model(input_ids=ids).logits)


@torch.inference_mode()
def test_merged_adapters_are_in_it(vl_model, ids):
    from vae_qwen3vl.language.adapters import add_lora, merge_lora

    before = plain_model(vl_model)(input_ids=ids).logits
    adapted = add_lora(vl_model)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.eval()
    expected = adapted(input_ids=ids).logits
    found = plain_model(merge_lora(adapted))(input_ids=ids).logits
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_new_words_leave_the_text_alone_and_never_win(vl_model, ids):
    rows = {393 + number: torch.randn(48) * 100 for number in range(50)}  # loud, from inside the table to behind it
    plain = plain_model(vl_model, rows)
    logits = plain(input_ids=torch.cat([ids, torch.tensor([[393, 442]] * 2)], dim=1)).logits
    expected = vl_model(input_ids=ids).logits
    assert torch.equal(logits[:, :-2, :393], expected[..., :393])
    assert bool((logits[..., 393:].amax(-1) < logits[..., :393].amax(-1)).all())
    # On any state whatever: theirs is the mean of the logits of text.
    of_any_state = plain.lm_head(torch.randn(500, 48) * 1000)
    assert bool((of_any_state[:, 393:].amax(-1) < of_any_state[:, :393].amax(-1)).all())


def test_tied_tables_stay_tied_without_new_words_and_part_with_them(make_vl):
    import transformers

    config = make_vl("qwen2_vl").config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    tied = transformers.Qwen2VLForConditionalGeneration(config).eval()
    plain = plain_model(tied)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    parted = plain_model(tied, {400: torch.ones(48)})
    assert torch.equal(parted.model.embed_tokens.weight[400], torch.ones(48))
    assert torch.equal(parted.lm_head.weight[:400], tied.lm_head.weight)
    assert len(tied.lm_head.weight) == 400
