"""A request may ask for the best of several answers, where the server draws any."""

from __future__ import annotations

from dataclasses import replace

import pytest

from live_server import chat, mesh_part, text
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.candidates.settings import CandidateSettings

CHAT = "/v1/chat/completions"


@pytest.fixture
def choosing(live, minilm, monkeypatch):
    settings = CandidateSettings(candidates=4, shape_weight=0.0)
    monkeypatch.setattr(live.service, "settings", replace(live.service.settings, max_candidates=4))
    monkeypatch.setattr(live.service, "chooser", Chooser(settings=settings, encoder=minilm))
    return live


def asked(mug, **more):
    return {**chat(mesh_part(mug), text("What is it?")), "max_tokens": 8, "temperature": 2.0, "seed": 3, **more}


def test_the_best_of_several_answers_is_given_at_once_and_as_a_stream(choosing, mug):
    whole = choosing.client.post(CHAT, json=asked(mug, candidates=4)).json()
    said = whole["choices"][0]["message"]["content"]
    drawn = [choosing.client.post(CHAT, json=asked(mug, seed=3 + n)).json() for n in range(4)]
    likeliest = choosing.client.post(CHAT, json=asked(mug, temperature=0)).json()
    texts = [one["choices"][0]["message"]["content"] for one in (likeliest, *drawn)]
    assert said == choosing.service.chooser.choose(texts).text
    assert whole["usage"]["completion_tokens"] == sum(
        one["usage"]["completion_tokens"] for one in (likeliest, *drawn)
    )
    stream = choosing.client.post(CHAT, json=asked(mug, candidates=4, stream=True)).text
    assert stream.count("data: ") >= 3 and stream.rstrip().endswith("data: [DONE]")


def test_more_than_the_server_draws_are_refused(choosing, live, mug, monkeypatch):
    refused = choosing.client.post(CHAT, json=asked(mug, candidates=5))
    assert refused.status_code == 400 and "5 candidates are more than the 4" in refused.json()["error"]["message"]
    monkeypatch.setattr(live.service, "chooser", None)
    assert live.client.post(CHAT, json=asked(mug, candidates=1)).status_code == 400
