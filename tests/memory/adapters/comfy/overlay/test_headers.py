"""Questions about files that are answered once, in turn, and not while a prompt runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from lowtide.memory.adapters.comfy import plan_process, prompt_server
from lowtide.memory.adapters.comfy.overlay import headers
from lowtide.memory.adapters.comfy.overlay.answers import Unknown
from lowtide.memory.adapters.comfy.overlay.question import Question
from lowtide.memory.errors import LowtideError
from lowtide.memory.host import host_snapshot
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.planner.wired import wired
from lowtide.memory.units import GIB
from lowtide.tests.hosts import graphs


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_server, "running", lambda: False)
    roomy = replace(host_snapshot(), available=8 * GIB)
    monkeypatch.setattr(headers, "host_snapshot", lambda: roomy)


def question(key: str, level: str | None = None) -> Question:
    run = wired(graphs.stock("x.safetensors"))
    config = None if level is None else MemoryOptimizationConfig.from_level(level)
    if config is not None:
        run = replace(run, optimized=frozenset(("model", "clip", "vae")), selector={})
    return Question(run, config, (config or MemoryOptimizationConfig(),), {}, key, {})


class Slow:
    """Answers when it is let; ``most`` is how many were asked of it at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()
        self.at_once = self.most = 0

    def __call__(self, asked: Question, give_up: Callable[[], bool]) -> dict[str, Any]:
        self.asked.append(asked.key)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            while not self.go.wait(0.01):
                if give_up():
                    raise plan_process.GivenUp("given up")
        finally:
            self.at_once -= 1
        if asked.key.startswith("bad"):
            raise LowtideError("/some/secret/folder/x is broken")
        if asked.key.startswith("worse"):
            raise ValueError("a fault of ours")
        return {"of": asked.key}


def wait(probe: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pending(said: object) -> bool:
    return isinstance(said, Unknown) and said.pending


def test_a_question_is_asked_once_and_its_answer_kept() -> None:
    ask = Slow()
    found = headers.Predictions(ask)
    begun = time.monotonic()
    assert all(pending(found.look(question("a"))) for _ in range(5))
    assert time.monotonic() - begun < 0.5, "nobody waits for it"
    ask.go.set()
    wait(lambda: found.look(question("a")) == {"of": "a"})
    assert ask.asked == ["a"]
    wait(lambda: found._thread is None)
    assert found.look(question("a")) == {"of": "a"} and found._thread is None


def test_of_those_that_wait_the_latest_is_next() -> None:
    ask = Slow()
    found = headers.Predictions(ask)
    found.look(question("a"))
    wait(lambda: ask.asked)
    for key in "bcd":
        assert pending(found.look(question(key)))
    ask.go.set()
    wait(lambda: found.look(question("a")) == {"of": "a"} and found._thread is None)
    assert ask.asked == ["a", "d"] and ask.most == 1


def test_a_failure_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Slow()
    ask.go.set()
    found = headers.Predictions(ask)
    for key in ("bad", "worse"):
        found.look(question(key))
        wait(lambda: found._thread is None)
        said = found.look(question(key))
        assert isinstance(said, Unknown) and not said.pending and ask.asked[-1] == key
        assert "secret" not in said.why and said.why
    assert ask.asked == ["bad", "worse"]
    monkeypatch.setattr(headers, "AGAIN", 0.0)
    assert pending(found.look(question("bad")))
    wait(lambda: ask.asked == ["bad", "worse", "bad"])


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MOST", 3)
    ask = Slow()
    ask.go.set()
    found = headers.Predictions(ask)
    for key in "abcd":
        found.look(question(key))
        wait(lambda: found._thread is None)
        found.look(question("a"))
    assert set(found._kept) == {"a", "c", "d"}
    found.forget()
    assert pending(found.look(question("a")))


def test_nothing_is_begun_while_a_prompt_runs_and_what_was_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask, prompts = Slow(), [1]
    monkeypatch.setattr(prompt_server, "running", lambda: not prompts)
    found = headers.Predictions(ask)
    found.look(question("a"))
    wait(lambda: ask.asked)
    assert pending(found.look(question("b")))
    prompts.clear()
    wait(lambda: found._thread is None)
    said = found.look(question("a"))
    assert isinstance(said, Unknown) and not said.pending and "a prompt is running" in said.why
    assert ask.asked == ["a"]
    prompts.append(1)
    ask.go.set()
    assert pending(found.look(question("a")))
    wait(lambda: found.look(question("a")) == {"of": "a"})


def test_nothing_is_begun_where_the_host_is_short_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = replace(host_snapshot(), available=GIB)
    monkeypatch.setattr(headers, "host_snapshot", lambda: short)
    ask = Slow()
    said = headers.Predictions(ask).look(question("a"))
    assert isinstance(said, Unknown) and not said.pending and ask.asked == []
    assert "2.00 GB of RAM, and 1.00 GB are available" in said.why


def at(alone: int, first: int, whole: int | None = None) -> dict[str, Any]:
    weights = {"weights": alone // 2, "streamed": 0, "seconds": 1.0}
    return {"alone": alone, "first": first, "whole": whole or first, **weights}


def figure(asked: Question, levels: list[Any], stage: str, free: int | None) -> tuple[int, str]:
    from lowtide.memory.adapters.comfy.overlay import fit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "available", lambda: free)
        return headers._figure(asked, {"levels": levels}, stage)


def test_models_of_earlier_nodes_count_where_there_is_room_for_them() -> None:
    levels = [{"decode": at(2 * GIB, 9 * GIB)}]
    assert figure(question("a"), levels, "decode", 10 * GIB)[0] == 9 * GIB
    need, why = figure(question("a"), levels, "decode", 8 * GIB)
    assert need == 2 * GIB, "they leave"
    assert "1.00 GB of weights, 1.00 GB beside them" in why and "used before" not in why
    assert figure(question("a"), levels, "decode", None)[0] == 9 * GIB
    text = figure(question("a", "balanced"), levels, "decode", 10 * GIB)[1]
    assert "at level balanced" in text and "7.00 GB of models used before" in text


def test_the_level_that_follows_what_fits() -> None:
    auto = MemoryOptimizationConfig.from_level("none").replace(requested_level="fastest")
    from lowtide.memory.candidates import levels_from

    ways = tuple(levels_from(auto))
    asked = replace(question("a", "none"), config=auto, configs=ways)
    peaks = [9 * GIB, 6 * GIB, 3 * GIB, 2 * GIB]
    levels = [{"denoise": at(peak, peak)} for peak in peaks]
    for free, chosen in ((12, 9), (7, 6), (1, 2)):
        assert figure(asked, levels, "denoise", free * GIB)[0] == chosen * GIB
    need, why = figure(asked, levels, "denoise", 4 * GIB)
    assert need < 4 * GIB and "at level" in why
    assert figure(asked, levels, "denoise", None)[0] == 9 * GIB, "the device's size decides"
