"""The overlay's routes in a running ComfyUI: who may ask, how much, and in which form."""

from __future__ import annotations

import gzip
import http.client
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lowtide.tests.hosts.overlay import ask, refusal, state, status
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu"), pytest.mark.long]

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


def raw(server: Server, name: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """The answer to a body as it is, with headers as they are."""
    asked = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    kind = {"Content-Type": "application/json", **named}
    asked.request("POST", f"/lowtide/{name}", body, kind)
    answer = asked.getresponse()
    found = answer.status, answer.read()
    asked.close()
    return found


def test_a_body_that_is_no_body_is_refused_with_a_reason(server: Server) -> None:
    deep, digits = b'{"prompt":' + b"[" * 50_000, b"9" * 100_000
    bodies = [b"", b"\xef\xbb\xbf{}", b'{"prompt":"\xff"}', '{"prompt":{}}'.encode("utf-16"), deep]
    bodies += [b'{"prompt":{"1":{"class_type":"x","inputs":{"a":' + digits + b"}}}}"]
    bodies += [b'{"prompt":{"\\ud800":{}}}', b'{"prompt":[]}', b"null", b'{"prompt":{},"x":1}']
    for body in bodies:
        code, said = raw(server, "fit", body)
        assert code == 400 and json.loads(said)["error"], body[:40]
    many = json.dumps({"prompt": dict.fromkeys(map(str, range(5001)))}).encode()
    assert raw(server, "fit", many)[0] == 400
    for coding in ("gzip", "deflate"):
        code, said = raw(server, "rescue", b"\x1f\x8bbroken", Content_Encoding=coding)
        assert code == 400 and json.loads(said)["error"], coding
    # What swells when it is unpacked is not unpacked to its end.
    bomb = gzip.compress(b" " * (64 << 20))
    assert raw(server, "rescue", bomb, Content_Encoding="gzip")[0] == 413
    assert raw(server, "fit", bomb, Content_Encoding="gzip")[0] == 413
    question = gzip.compress(b'{"question": "x", "yes": true}')
    assert raw(server, "rescue", question, Content_Encoding="gzip")[0] == 404


def test_a_graph_as_large_as_may_be_is_judged(server: Server) -> None:
    """Each node behind the one after it, and every node with links to many."""
    chain = {str(at): {"class_type": "x", "inputs": {"a": [str(at + 1), 0]}} for at in range(5000)}
    web = {
        str(at): {"class_type": "x", "inputs": {f"i{n}": [str(at ^ n), n] for n in range(60)}}
        for at in range(1000)
    }
    circle = {"1": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["1", 0]}}}
    odd = {
        "1": {"class_type": "KSampler", "inputs": {"model": ["1", 10**30], "a": [1e308, -1e400]}}
    }
    for graph in (chain, web, circle, odd):
        found = ask(server, "fit", prompt=graph)
        assert set(found["nodes"]) == set(graph) and found["fits"] is None


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
