"""Whatever is sent, the server answers in its own words, and goes on."""

from __future__ import annotations

import base64
import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from live_server import NAME, chat, text, until

EXAMPLES = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
SAID = {400, 404, 405, 408, 413, 422, 429}
"""Refusals that a request may get."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.sampled_from(
    [
        text("Hi"),
        {"type": "mesh_url", "mesh_url": {"url": "data:model/off;base64,T0ZGCg=="}},
        {"type": "file", "file": {"file_id": "file-000000000000000000000000"}},
        {"type": "text"},
        {"type": "mesh_url", "mesh_url": "x"},
        {},
    ]
)


@st.composite
def nearly_chats(draw: st.DrawFn) -> dict:
    """Draw a chat of which a field or two are something else."""
    body = chat(*draw(st.lists(PARTS, max_size=2)), max_tokens=2)
    for name in draw(
        st.lists(st.sampled_from([*body, "stream", "stop", "n", "seed", "temperature", "x"]), max_size=2)
    ):
        body[name] = draw(JSON)
    return body


@settings(max_examples=25, **EXAMPLES)
@given(body=nearly_chats())
def test_nearly_chats_are_answered_or_refused(live, body):
    response = live.client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200 or set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.status_code in {200, *SAID}


@settings(max_examples=25, **EXAMPLES)
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/encode", "/v1/decode", "/v1/files", "/v1/search"]),
    body=st.binary(max_size=200),
    kind=st.sampled_from(
        ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", ""]
    ),
)
def test_any_bytes_are_refused(live, path, body, kind):
    response = live.client.post(path, content=body, headers={"Content-Type": kind} if kind else {})
    assert response.status_code in SAID
    assert response.json()["error"]["message"]


@settings(max_examples=20, **EXAMPLES)
@given(name=st.text(max_size=30), data=st.binary(max_size=50), purpose=st.text(max_size=70))
def test_any_upload_is_kept_or_refused(live, name, data, purpose):
    response = live.client.post("/v1/files", files={"file": (name + ".glb", data)}, data={"purpose": purpose})
    assert response.status_code in {200, *SAID}
    if response.status_code == 200:
        upload = response.json()["id"]
        assert live.client.get(f"/v1/files/{upload}/content").content == data
        assert live.client.delete(f"/v1/files/{upload}").status_code == 200


@settings(max_examples=20, **EXAMPLES)
@given(data=st.binary(max_size=80), kind=st.sampled_from(["gltf-binary", "gltf+json", "obj", "ply", "stl", "off"]))
def test_any_mesh_is_refused(live, data, kind):
    url = f"data:model/{kind};base64,{base64.b64encode(data).decode()}"
    response = live.client.post("/v1/encode", json={"input": {"type": "mesh_url", "mesh_url": {"url": url}}})
    assert response.status_code == 422


@pytest.fixture(scope="module")
def schema(live):
    return schemathesis.openapi.from_dict(live.client.get("/openapi.json").json())


def test_requests_made_of_the_servers_own_description_break_nothing(live, schema):
    for operation in schema.get_all_operations():

        @settings(max_examples=4, **EXAMPLES)
        @given(case=operation.ok().as_strategy())
        def check(case) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body.update(model=NAME, max_tokens=1, max_completion_tokens=1)
            response = case.call(base_url=live.url, timeout=60)
            assert response.status_code < 500 or response.status_code == 503

        check()


def test_the_server_is_well_after_all_that(live):
    response = live.client.post("/v1/chat/completions", json=chat(text("Hi"), max_tokens=2))
    assert response.status_code == 200
    # What a request took is given back after its answer's end.
    until(lambda: not live.gate.bytes and not live.service.engine.load().active)
