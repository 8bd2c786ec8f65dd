"""Lowtide Fit Check."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory import fit_check
from lowtide.memory.planner.work import Work
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideFitCheck"


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide Fit Check")
    assert inputs(NAME) == {
        "width": "INT",
        "height": "INT",
        "batch_size": "INT",
        "steps": "INT",
        "cfg": "FLOAT",
        "budget_gb": "FLOAT",
        "if_it_does_not_fit": ["report", "stop"],
    }
    assert inputs(NAME, "optional") == {
        "config": "LOWTIDE_CONFIG",
        "model": "MODEL",
        "clip": "CLIP",
        "vae": "VAE",
        "latent": "LATENT",
    }
    assert node(NAME).RETURN_TYPES == ("MODEL", "CLIP", "VAE", "STRING", "STRING", "IMAGE")


def test_it_asks_once_and_passes_the_models_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def check(*args: Any, **parts: Any) -> tuple[str, str, str]:
        asked.append((args, parts))
        return "table", "{}", "picture"

    monkeypatch.setattr(fit_check, "fit_check", check)
    model, clip, vae = object(), object(), object()
    answer = node(NAME)().run(512, 256, 2, 9, 1.0, 4.5, "stop", None, model, clip, vae)
    assert answer["result"] == (model, clip, vae, "table", "{}", "picture")
    assert answer["ui"] == {"text": ["table"]}
    work = Work(512, 256, batch=2, steps=9, guided=False)
    parts = {"model": model, "clip": clip, "vae": vae, "latent": None}
    assert asked == [((None, work, 4.5, "stop"), parts)]
    node(NAME)().run(512, 256, 2, 9, 7.0, 0.0, "report")
    assert asked[1][0][1].guided is True
