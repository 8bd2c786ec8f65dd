"""What a budget's plan keeps free: 3%, or by how much this device's runs lay above predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide import plan
from lowtide.memory import backend, learning
from lowtide.memory.adapters import pipeline_batches, plan_subject
from lowtide.memory.adapters.pipeline_plans import key_of_run
from lowtide.memory.adapters.plan_subject import pipeline_subject
from lowtide.memory.adapters.synthetic import build, write_pipeline
from lowtide.memory.device import snapshot
from lowtide.memory.history_rows import FITS, OUT_OF_MEMORY, Key, Row
from lowtide.memory.kept_free import kept_free, of_rows
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.planner.planner import MARGIN, Limits
from lowtide.memory.planner.work import Work
from lowtide.memory.profile_published import assumed
from lowtide.memory.run_key import gpu_name
from lowtide.memory.units import GIB

RUN: dict[str, Any] = {"size": 128, "steps": 2, "dtype": "float16"}
MODEL = "Pipe, 3 million parameters"


@pytest.fixture(autouse=True)
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(learning.SWITCH, raising=False)


def row(measured: int | None, outcome: str = FITS, *, gpu: str = "gpu", model: str = MODEL) -> Row:
    key = Key(gpu, model, "1x64x64", "none", 4096)
    return Row(key, "denoising", "none", 1.0, outcome, predicted=1000, measured=measured)


def here(accelerator: Any) -> str:
    reading = snapshot(backend.device_of(accelerator.device))
    return gpu_name(reading, str(torch.__version__))


def test_without_runs_that_say_something_it_is_three_percent() -> None:
    for stages in ([], [[]], [[row(None)], [row(2000, OUT_OF_MEMORY)]]):
        found = of_rows(stages)
        assert found.margin == MARGIN and "no run of this model" in found.why


def test_runs_above_their_predictions_keep_more_free_and_the_worst_stage_counts() -> None:
    exact, above = [row(1000)] * 20, [row(1100)] * 20
    assert of_rows([exact]).margin == pytest.approx(0.012, abs=0.003), (
        "less, for it is always right"
    )
    found = of_rows([exact, above])
    assert 0.09 < found.margin < 0.12 and "learnt from 40 measured stages" in found.why
    assert 0.03 < of_rows([above[:1]]).margin < found.margin, "one run is believed a little"
    assert of_rows([[row(1000 + 10 * n) for n in range(20)]]).margin > 0.15, "as far as it scatters"


def test_runs_below_their_predictions_are_not_counted_on() -> None:
    assert 0.01 <= of_rows([[row(500)] * 20]).margin <= MARGIN


def test_only_this_device_and_this_model_tell(accelerator: Any) -> None:
    gpu = here(accelerator)
    models = {"denoising": MODEL, "decoding": MODEL}
    learning.history().add([row(1500, gpu="another"), row(1500, gpu=gpu, model="other")] * 9)
    assert kept_free(models, None).margin == MARGIN
    learning.history().add([row(1500, gpu=gpu)] * 9)
    found = kept_free(models, None)
    assert found.margin > 0.3 and "learnt from 9" in found.why
    assert "30" not in found.text() and "% of the prediction is kept free: learnt" in found.text()
    named = kept_free(models, "RTX 4090")
    assert named.margin == MARGIN and "only named (RTX 4090)" in named.why


def test_where_there_is_no_device_or_no_history_it_says_so(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.history().add([row(1500, gpu=here(accelerator))] * 9)
    monkeypatch.setenv(learning.SWITCH, "off")
    found = kept_free({"denoising": MODEL}, None)
    assert found.margin == MARGIN and "LOWTIDE_HISTORY is off" in found.why
    monkeypatch.setattr(backend, "available_types", list)
    assert "no device here" in kept_free({"denoising": MODEL}, None).why


def test_a_plan_keeps_what_was_learnt_and_says_so(accelerator: Any) -> None:
    model = pipeline_subject("tiny-sd15", Work(128, 128), None, "float16").models()["denoising"]
    loaded = build("tiny-sd15", "float16")
    device = backend.device_of(accelerator.device)
    key = key_of_run(loaded, MemoryOptimizationConfig(), Work(128, 128), device)
    assert (key.gpu, key.model) == (here(accelerator), model), "as runs of it are called"
    whole = plan("tiny-sd15", **RUN).peak_allocated_bytes
    tight = whole * 1.05 / GIB
    before = plan("tiny-sd15", budget_gb=tight, **RUN)
    assert before.margin == MARGIN and before.how == {"level": "none"}
    assert "3.0% of the prediction is kept free: no run of this model" in before.text()
    learning.history().add([row(1400, gpu=here(accelerator), model=model)] * 20)
    found = plan("tiny-sd15", budget_gb=tight, **RUN)
    assert found.margin is not None and found.margin > 0.3
    assert set(found.how) == {"text_encoder", "unet", "vae"}, "what fitted closely no longer does"
    assert found.peak_allocated_bytes * (1 + found.margin) <= tight * GIB
    assert "kept free: learnt from 20 measured stages" in found.text()


def test_a_folder_is_called_as_its_pipeline_is(tmp_path: Any) -> None:
    folder = write_pipeline(tmp_path / "pipe", "tiny-sd15")
    named = pipeline_subject("tiny-sd15", Work(128, 128), None, "float16").models()
    assert pipeline_subject(str(folder), Work(128, 128), None, "float16").models() == named


def test_the_largest_batch_keeps_as_much_free(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = pipeline_subject("tiny-sd15", Work(64, 64), None, "float16")
    asked: list[Any] = []
    monkeypatch.setattr(
        plan_subject, "images_at_once", lambda *given, **more: asked.append(more["margin"]) or 1
    )
    costs = {"rates": assumed("RTX 3060"), "workspace_factor": 1.0}
    assert subject.images_at_once(Limits(GIB, margin=0.4), costs) == 1 and asked == [0.4]
    need = [
        pipeline_batches.smallest_budget(
            subject.traces.pipe, MemoryOptimizationConfig(), Work(64, 64), costs["rates"], margin=it
        )
        for it in (0.0, 0.4)
    ]
    assert need[1] == pytest.approx(1.4 * need[0], rel=0.1)
