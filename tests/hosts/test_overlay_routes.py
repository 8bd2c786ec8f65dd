"""The overlay's routes in a running ComfyUI: who may ask, how much, and in which form."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lowtide.tests.hosts.overlay import ask, refusal, state, status
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu")]

POSTS = ("free", "unload", "next", "fit", "history/reset", "rescue")

HOSTILE = "\u202e<img src=x onerror=alert(1)>\x00" + "🦀" * 5000


def test_a_hostile_graph_is_judged_and_repeated_bounded(server: Server) -> None:
    graph = {HOSTILE: {"class_type": HOSTILE, "inputs": {HOSTILE: [HOSTILE, 0]}}, "2": None}
    found = ask(server, "fit", prompt=graph)
    assert found["fits"] is None and len(json.dumps(found)) < 12_000
    assert "\u202e" not in "".join(found["nodes"])


@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize("prefix", ["", "/api"])
def test_what_another_site_sends_is_refused(server: Server, name: str, prefix: str) -> None:
    path, before = f"{prefix}/lowtide/{name}", state(server)["next"]
    body = {"level": "ultra", "budget_gb": None} if name == "next" else {}
    asked: list[tuple[set[int], dict[str, str], str]] = [
        ({403}, {"Origin": "http://evil.example", "Content-Type": "application/json"}, "POST"),
        ({415}, {"Content-Type": "text/plain"}, "POST"),
        ({415}, {"Content-Type": "application/x-www-form-urlencoded"}, "POST"),
        ({404, 405}, {}, "GET"),
    ]
    for code, headers, method in asked:
        assert status(server, path, body, headers, method) in code, headers
    assert state(server)["next"] == before


def test_a_request_that_is_too_large_is_not_read(server: Server) -> None:
    assert refusal(server, "next", {"level": "x" * 100_000})[0] == 413
    assert refusal(server, "fit", {"prompt": {"1": "x" * (5 << 20)}})[0] == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NODE = st.fixed_dictionaries(
    {"class_type": st.sampled_from(["KSampler", "VAEDecode", "x"]) | JSON},
    optional={
        "inputs": st.dictionaries(
            st.sampled_from(["model", "vae", "latent_image", "samples", "width", "height", "a"]),
            st.tuples(st.sampled_from("1234"), st.integers(-3, 3)).map(list) | JSON,
        )
        | JSON
    },
)
GRAPHS = st.dictionaries(st.sampled_from("1234"), NODE | JSON, max_size=4)
FIELDS = st.sampled_from(["target", "keep", "id", "level", "budget_gb", "prompt", "question"])
BODIES = JSON | st.dictionaries(FIELDS, JSON) | GRAPHS.map(lambda it: {"prompt": it})


@settings(
    max_examples=150,
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(POSTS), BODIES)
def test_whatever_is_sent_is_answered(server: Server, name: str, body: object) -> None:
    code = status(server, f"/lowtide/{name}", body, {"Content-Type": "application/json"})
    assert code in (200, 400, 404, 409)
