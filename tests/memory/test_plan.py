"""``lowtide.plan``: a run predicted from a name, a folder or a pipeline."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

import lowtide
import pytest
import torch
from lowtide import plan
from lowtide.memory.adapters.synthetic import build, run, write_pipeline
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.units import GIB

RUN: dict[str, Any] = {"size": 128, "steps": 2, "dtype": "float16", "card": "RTX 3060"}


def test_it_is_a_function_of_the_library_and_no_module() -> None:
    assert callable(lowtide.plan) and "plan" in lowtide.__all__
    for module in ("lowtide.bench.plan", "lowtide.memory.plan"):
        importlib.import_module(module)  # neither takes the name away
    assert lowtide.plan is plan


def test_a_run_by_name_has_stages_with_units_in_their_names() -> None:
    found = plan("tiny-sd15", level="aggressive", **RUN)
    assert (found.level, found.fits) == ("aggressive", True)
    assert list(found.stages) == ["encode", "denoise", "decode"]
    for stage in found.stages.values():
        assert 0 < stage.peak_allocated_bytes <= stage.peak_reserved_bytes
        assert stage.seconds is not None and stage.seconds > 0
    peaks = [stage.peak_allocated_bytes for stage in found.stages.values()]
    assert found.peak_allocated_bytes == max(peaks)
    assert found.device_peak_bytes == found.peak_reserved_bytes + found.profile.context_bytes
    assert "RTX 3060" in found.profile.source and not found.profile.measured
    assert json.loads(json.dumps(found.to_dict()))["predicted"] is True
    assert "predicted" in found.text()


def test_it_cannot_be_changed() -> None:
    found = plan("tiny-sd15", **RUN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.level = "ultra"  # type: ignore[misc]


def test_a_folder_a_name_and_a_pipeline_give_the_same(tmp_path: Any) -> None:
    named = plan("tiny-sd15", **RUN)
    folder = write_pipeline(tmp_path / "pipe", "tiny-sd15")
    assert plan(folder, **RUN).stages == named.stages
    assert plan(build("tiny-sd15", "float16"), **RUN).stages == named.stages
    assert plan(build("tiny-sd15", "float16", on_meta=True), **RUN).stages == named.stages


def test_a_budget_is_kept_and_says_how(accelerator: Any) -> None:
    whole = plan("tiny-sd15", **RUN).peak_allocated_bytes
    budget = whole * 0.6
    found = plan("tiny-sd15", budget_gb=budget / GIB, **RUN)
    assert found.fits and found.level == "budget"
    assert found.peak_allocated_bytes * 1.03 <= budget
    assert set(found.how) == {"text_encoder", "unet", "vae"}
    none = plan("tiny-sd15", budget_gb=0.001, **RUN)
    assert not none.fits and none.stages == {} and "budget" in none.advice[0]
    assert none.smallest_budget_bytes is not None
    least = none.smallest_budget_bytes / GIB
    assert plan("tiny-sd15", budget_gb=least, **RUN).fits
    many = plan("tiny-sd15", budget_gb=least * 1.5, batch=30, **RUN)
    assert many.largest_batch is not None and 1 <= many.largest_batch < 30


def test_the_pipeline_stays_as_it_is(accelerator: Any) -> None:
    pipe = build("tiny-sd15", "float32")
    expected = run(pipe)
    plan(pipe, size=128, card="RTX 3060")
    assert accelerator.allocated == 0
    assert torch.equal(run(pipe), expected)


@pytest.mark.parametrize(
    ("model", "asked", "error", "message"),
    [
        ("sd99", {}, ConfigError, "neither a model known here"),
        ("tiny-sd15", {"card": "Voodoo 2"}, ConfigError, "Voodoo 2 is not listed"),
        ("tiny-sd15", {"level": "none", "budget_gb": 1}, ConfigError, "a level or a budget_gb"),
        ("tiny-sd15", {"level": "huge"}, ConfigError, "unknown level"),
        ("tiny-sd15", {"budget_gb": -1}, ConfigError, "not a size"),
        (torch.nn.Linear(1, 1), {}, TargetError, "is no diffusers pipeline"),
    ],
)
def test_what_cannot_be_planned_is_explained(
    model: Any, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(model, **{**RUN, **asked})


def test_this_machines_device_is_measured_once(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from lowtide.memory import profile_measure, profiles

    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path))
    profiles.forget()
    counted: list[float] = []
    real = profile_measure.measure

    def measure(*args: Any, seconds: float) -> Any:
        counted.append(seconds)
        return real(*args, seconds=seconds)

    monkeypatch.setattr(profile_measure, "measure", measure)
    asked = {name: value for name, value in RUN.items() if name != "card"}
    first, second = (plan("tiny-sd15", **asked) for _ in range(2))
    assert counted == [10.0]
    assert first.profile == second.profile and first.profile.measured
    assert first.profile.workspace_factor == 0, "it counts tensors only"
    profiles.forget()
    assert plan("tiny-sd15", **asked).profile == first.profile and len(counted) == 1, (
        "from its file"
    )
    assert accelerator.allocated == 0
    profiles.forget()
