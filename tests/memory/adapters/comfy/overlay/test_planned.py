"""Predictions of loaded models: what lies beside them is counted or named, failures are retried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lowtide.memory.adapters.comfy import plan_loaded, plan_present
from lowtide.memory.adapters.comfy.overlay import planned
from lowtide.memory.later import Later
from lowtide.memory.planner.placement import Placement
from lowtide.memory.planner.predict import Turn, predict
from lowtide.memory.profile_published import assumed
from lowtide.tests.hosts import graphs
from lowtide.tests.memory.planner.made import MIB, made


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_later", Later("test"))
    planned.forget()


def controlled() -> dict[str, Any]:
    graph = graphs.stock("x.safetensors")
    inputs = {"conditioning": ["2", 0], "control_net": ["21", 0]}
    graph["20"] = {"class_type": "ControlNetApply", "inputs": inputs}
    graph["5"]["inputs"]["positive"] = ["20", 0]
    return graph


def test_control_nets_are_counted_by_their_weights_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn = Turn("model", "denoise", made(weight=8 * MIB), Placement(), calls=3)
    profile = assumed("NVIDIA GeForce RTX 3060")
    alone = predict([turn], workspace_factor=profile.workspace_factor).peak_allocated
    monkeypatch.setattr(planned, "snapshot", lambda _: SimpleNamespace(name="x"))
    monkeypatch.setattr(planned.comfy, "device", lambda: None)
    monkeypatch.setattr(planned.profiles, "known", lambda *_: profile)
    monkeypatch.setattr(plan_loaded, "loaded_subject", lambda *_, **__: None)
    monkeypatch.setattr(plan_present, "turn_as_it_is", lambda *_: turn)
    form = SimpleNamespace(latent_channels=4, latent_dimensions=2)
    model = SimpleNamespace(model_size=lambda: 0, model=SimpleNamespace(latent_format=form))
    net = SimpleNamespace(get_models=lambda: [SimpleNamespace(model_size=lambda: 5 * MIB)] * 2)
    held: dict[str, Any] = {"1": model, "21": net}
    monkeypatch.setattr(planned, "cached", lambda link, _: held.get(link[0]))
    graph = controlled()

    def need(key: str) -> tuple[int, str]:
        found = None
        for _ in range(200):
            found = planned.predicted(graph, "5", dict.fromkeys(graph, key))
            if isinstance(found, tuple):
                return found
        raise AssertionError(found)

    count, why = need("with")
    assert count == alone + 10 * MIB
    assert "10.0 MB of ControlNets' weights" in why and "ControlNetApply computes is not" in why
    held["21"] = None  # not loaded yet
    count, why = need("without")
    assert count == alone and "ControlNetApply computes is not counted" in why
    graph = graphs.stock("x.safetensors")
    assert "counted" not in need("plain")[1]


def test_what_failed_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [None, (3, "why")]
    monkeypatch.setattr(planned, "_job", lambda *_: lambda: answers.pop(0))
    ask = lambda: planned.predicted({}, "5", {"5": "key"})  # noqa: E731
    monkeypatch.setattr(planned, "PATIENCE", 10.0)
    assert ask() is None and ask() is None, "it is remembered for a while"
    assert planned._later.finish(5)
    monkeypatch.setattr(planned, "AGAIN", 0.0)
    assert ask() == (3, "why") and ask() == (3, "why") and answers == []
