"""The likelihood of every answer is the model's own, whatever is read together."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.evaluation import likelihoods
from vae_qwen3vl.evaluation.likelihoods import answer_likelihoods
from vae_qwen3vl.evaluation.objects import EvalData, EvalObject
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL, Processor3D

ANSWERS = ["A red robot.", "A chair.", "Yes.", "A chair with four legs and a red robot in one sentence."]


def data_of(objects: list[EvalObject]) -> EvalData:
    codebook = torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    return EvalData(objects=objects, codebook=codebook, latent_side=8, vae_hash="x")


@pytest.mark.parametrize(("kind", "most"), [("qwen2_vl", 1024), ("qwen3_vl", 1024), ("qwen2_vl", 1), ("qwen3_vl", 7)])
def test_likelihoods_behind_a_cache_are_those_of_whole_sequences(
    kind: str, most: int, vl_models, tokenizer, monkeypatch, shape
) -> None:
    monkeypatch.setattr(likelihoods, "_MOST_TOKENS", most)
    model = Qwen3VLWith3DBranch(use_vl_model=vl_models[kind], latent_dim=8, merge=2, max_3d_tokens=0).eval()
    processor = Processor3D(tokenizer)
    objects = [shape("a", 5, 0), None, shape("b", 40, 1), shape("c", 17, 2)]
    prompts = ["What is it?", "Describe this 3D shape in one sentence:", "Is it a chair?", "What is it?"]
    data = data_of([one for one in objects if one is not None])
    found = answer_likelihoods(model, processor, data, objects, prompts, ANSWERS, batch_size=2)
    for row, (one, prompt) in enumerate(zip(objects, prompts, strict=True)):
        feats, coords = (None, None) if one is None else data.batch([one])
        for column, answer in enumerate(ANSWERS):
            text = processor(prompt, answer, objects=int(one is not None))
            with torch.no_grad():
                loss = model(**text, feats_3d=feats, coords_3d=coords)["loss"]
            expected = -float(loss) * int((text["labels"] != IGNORED_LABEL).sum())
            assert found[row, column] == pytest.approx(expected, rel=1e-4, abs=1e-3)
