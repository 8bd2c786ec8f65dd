"""What a browser may ask for: its form, its size, and what it is told when it is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowtide.memory import learning
from lowtide.memory.adapters.comfy.overlay import actions, requests, routes, state
from lowtide.memory.history import Key, Row

GOOD: dict[str, dict[str, Any]] = {
    "free": {"target": "both", "keep": ["SDXL"]},
    "unload": {"id": "0123456789abcdef"},
    "next": {"level": "ultra", "budget_gb": 6},
    "fit": {"prompt": {"1": {"class_type": "A", "inputs": {}}}},
    "history/reset": {},
    "rescue": {"question": "q", "yes": True},
}
KINDS = {name: kind for name, (kind, _) in actions.ACTIONS.items()}


def parse(name: str, body: object) -> Any:
    return requests.parse(KINDS[name], json.dumps(body).encode())


def test_every_route_has_a_form() -> None:
    assert set(GOOD) == set(KINDS)
    for name, body in GOOD.items():
        parse(name, body)


def test_what_may_be_left_out_and_what_may_be_null() -> None:
    assert parse("free", {"target": "vram"}).keep == []
    assert parse("next", {"level": None, "budget_gb": None}).level is None


BAD = [
    ("free", {}, "`target`"),
    ("free", {"target": "all"}, "`target`: Input should be 'vram', 'ram' or 'both'"),
    ("free", {"target": "vram", "keep": "x"}, "`keep`"),
    ("free", {"target": "vram", "keep": ["x" * 201]}, "`keep`"),
    ("free", {"target": "vram", "keep": ["x"] * 65}, "`keep`"),
    ("free", {"target": "vram", "keep": [1]}, "`keep`"),
    ("free", {"target": "vram", "why": 1}, "no such field; known: keep, target"),
    ("unload", {"id": 5}, "`id`"),
    ("unload", {"id": ""}, "`id`"),
    ("unload", {"id": "x" * 65}, "`id`"),
    ("next", {"level": "ultra"}, "`budget_gb`"),
    ("next", {"level": "auto", "budget_gb": None}, "`level`"),
    ("next", {"level": None, "budget_gb": 0}, "`budget_gb`: Input should be greater than 0"),
    ("next", {"level": None, "budget_gb": 1025}, "`budget_gb`"),
    ("next", {"level": None, "budget_gb": float("inf")}, ""),
    ("next", {"level": None, "budget_gb": float("nan")}, ""),
    ("next", {"level": None, "budget_gb": "6"}, "`budget_gb`"),
    ("next", {"level": None, "budget_gb": True}, "`budget_gb`"),
    ("fit", {"prompt": []}, "`prompt`"),
    ("fit", {"prompt": {str(at): {} for at in range(5001)}}, "`prompt`"),
    ("history/reset", {"all": True}, "no such field; known: none"),
    ("rescue", {"question": "q", "yes": 1}, "`yes`"),
    ("rescue", [], "object"),
    ("rescue", None, "object"),
]


@pytest.mark.parametrize(("name", "body", "said"), BAD)
def test_another_form_is_refused_with_a_reason(name: str, body: object, said: str) -> None:
    with pytest.raises(requests.Malformed) as refusal:
        parse(name, body)
    assert said in str(refusal.value) and len(str(refusal.value)) < 1000


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":1}' * 2, b"\x00"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    for kind in KINDS.values():
        with pytest.raises(requests.Malformed):
            requests.parse(kind, body)


def test_a_refusal_repeats_nothing_that_was_sent() -> None:
    secret = "</script><b>\u202e" * 20
    for name in KINDS:
        for body in ({secret: 1}, {**GOOD[name], secret: secret}, {"target": secret, "id": secret}):
            with pytest.raises(requests.Malformed) as refusal:
                parse(name, body)
            assert "script" not in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
FIELDS = sorted({field for kind in KINDS.values() for field in kind.model_fields})


@given(st.sampled_from(sorted(KINDS)), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_comes_is_taken_or_refused(name: str, body: object) -> None:
    try:
        parse(name, body)
    except requests.Malformed as refusal:
        assert str(refusal)


def reply(name: str, body: bytes, kind: str = "application/json") -> routes.Reply:
    async def read(most: int) -> bytes | None:
        return body if len(body) <= most else None

    return asyncio.run(routes.reply_to(name, kind, read))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "*/*"])
def test_only_json_is_read(kind: str) -> None:
    status, answer = reply("next", json.dumps(GOOD["next"]).encode(), kind)
    assert status == 415 and "application/json" in answer["error"]


def test_a_large_request_is_refused_before_it_is_looked_at() -> None:
    for name in KINDS:
        most = routes.LARGE if name == "fit" else routes.SMALL
        status, answer = reply(name, b" " * (most + 1))
        assert status == 413 and f"{most >> 10} kB" in answer["error"]
        assert reply(name, b" " * most)[0] == 400


def test_an_error_nobody_expected_says_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_asked: object) -> routes.Reply:
        raise KeyError("a secret")

    monkeypatch.setitem(actions.ACTIONS, "rescue", (requests.Answer, fails))
    status, answer = reply("rescue", json.dumps(GOOD["rescue"]).encode())
    assert status == 500 and "secret" not in answer["error"]
    assert "could not answer" in caplog.text


def test_an_answer_to_no_question_finds_nobody() -> None:
    assert reply("rescue", json.dumps(GOOD["rescue"]).encode())[0] == 404


def test_what_was_learned_is_shown_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path))
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)
    for at in range(3):
        key = Key("gpu", f"model {at}", "1x4", "none", 4)
        row = Row(key, "denoise", "none", float(at), predicted=100, measured=150)
        learning.log(lambda row=row: [row])
    known = state.history()
    assert (known["active"], known["runs"]) == (True, 3) and known["bytes"] > 0
    assert [row["model"] for row in known["rows"]] == ["model 0", "model 1", "model 2"]
    assert {(row["predicted"], row["measured"]) for row in known["rows"]} == {(100, 150)}
    assert str(tmp_path) not in json.dumps(known)
    status, answer = reply("history/reset", b"{}")
    assert status == 200
    assert (answer["history"]["runs"], answer["history"]["rows"]) == (0, [])
