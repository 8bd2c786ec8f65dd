"""Pipelines are given what is predicted to fit, and the run shows whether the prediction held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory import diffusers_session, learning, profiles, session, verified
from lowtide.memory.adapters import pipeline_choice, pipeline_plan, pipeline_plans
from lowtide.memory.adapters.synthetic import build, run
from lowtide.memory.device import snapshot
from lowtide.memory.errors import BudgetError
from lowtide.memory.foresight import TooSlow
from lowtide.memory.handles import LoadedPipeline, PipelineHandle
from lowtide.memory.history_rows import FITS, OUT_OF_MEMORY, Row
from lowtide.memory.later import planning
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.monitor import MemoryMonitor
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.planner import recent
from lowtide.memory.planner.work import Work
from lowtide.memory.units import MIB, parse_bytes
from lowtide.tests.memory.tiny import held

WORK = Work(64, 64, steps=2)
LEVELS = ("none", "balanced", "aggressive", "ultra")
STAGES = ["text_encoding", "denoising", "decoding"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the traces of a tiny pipeline at every level."""
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> Iterator[None]:
    """A home of its own, and a device whose kernels need no room of their own."""
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path))
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)
    name, version = snapshot(accelerator.device).name, str(torch.__version__)
    bare = replace(profiles.known(name, version), workspace_factor=0.0)
    monkeypatch.setitem(profiles._known, profiles.key_of(name, version), bare)
    recent.predictions.clear()
    verified.begin()
    yield
    assert planning.finish(60)


@pytest.fixture
def patient(traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces may take as long as they like, and are shared by these tests."""
    monkeypatch.setattr(pipeline_plans, "PATIENCE", 1e9)
    (tmp_path / "traces").symlink_to(traced, target_is_directory=True)


def plain() -> Any:
    return build("tiny-sd15", "float32")


def config(level: str, **more: Any) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level, **more)


def foreseen(pipe: Any, device: torch.device, level: str) -> int:
    """The peak predicted for a level, bytes."""
    found = pipeline_plans.PipelineForesight(pipe, WORK, device)(config(level))
    return max(stage.peak for stage in found.prediction.stages)


def rows() -> list[Row]:
    assert learning.flush()
    return learning.history()._both(lambda table: table.all())


def handle(pipe: Any, device: Any, asked: MemoryOptimizationConfig) -> PipelineHandle:
    return PipelineHandle(LoadedPipeline(pipe, "tiny"), asked, device)


def generate(one: PipelineHandle, **more: Any) -> torch.Tensor:
    usual: dict[str, Any] = {
        "prompt": "a cat", "negative": "", "width": 64, "height": 64, "steps": 2,
        "guidance": 5.0, "seed": 3, "batch_size": 1,
    }  # fmt: skip
    return diffusers_session.generate(one, **{**usual, **more})


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_level_by_hand_is_foretold_once_its_traces_are_there(
    patient: None, accelerator: Any, level: str
) -> None:
    pipe = plain()
    pipeline_plans.PipelineForesight(pipe, WORK, accelerator.device).prepare([config(level)])
    with MemoryOptimizer(level) as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.report is not None
        assert [it.stage for it in optimizer.report.stages] == STAGES
        with MemoryMonitor(optimizer, False, images=(1, 64, 64)) as monitor:
            run(pipe, size=64, steps=2)
        assert [it.stage for it in monitor.verified] == STAGES
        for it in monitor.verified:
            assert it.measured == monitor.stages[it.stage].allocated
            assert it.error is not None and abs(it.error) < 0.05, it
        assert list(optimizer.report.stages) == monitor.verified
        assert "denoising: " in optimizer.report.text() and " measured (" in optimizer.report.text()
    assert monitor.text().count(" predicted, ") == 3
    assert [it["stage"] for it in monitor.to_dict()["verified"]] == STAGES
    found = rows()
    assert [row.stage for row in found] == [*STAGES, "all"]
    for row in found:
        assert row.predicted and row.measured and row.predicted_seconds
        assert abs(row.predicted / row.measured - 1) < 0.05
        assert row.outcome == FITS


def test_level_none_is_left_in_peace(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("level none was predicted")

    monkeypatch.setattr(pipeline_choice, "PipelineForesight", refuse)
    pipe = plain()
    with MemoryOptimizer("none") as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.report is not None and optimizer.report.stages == []
    generate(handle(pipe, accelerator.device, config("none")))
    assert len(rows()) == 4


def test_a_machine_without_an_accelerator_predicts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline_choice, "PipelineForesight", None)
    optimizer = MemoryOptimizer("fastest", device="cpu")
    optimizer.optimize_pipeline(plain())
    assert optimizer.report is not None
    assert "no accelerator" in optimizer.report.text()
    optimizer.undo()


@pytest.mark.parametrize("level", LEVELS[:2])
def test_fastest_takes_what_fits_the_device_and_it_does(
    patient: None, accelerator: Any, level: str
) -> None:
    pipe = plain()
    need = {it: foreseen(pipe, accelerator.device, it) for it in LEVELS[:2]}
    between = {"none": 2 * need["none"], "balanced": (need["none"] + need["balanced"]) // 2}
    room = between[level]
    accelerator(capacity=held(accelerator)[1] + room)
    with MemoryOptimizer("fastest") as optimizer:
        optimizer.optimize_pipeline(pipe, WORK)
        assert optimizer.config.level.value == level
        assert optimizer.config.requested_level.value == "fastest"
        text = optimizer.report.text()
        assert text.startswith(f"Level {level} on ")
        assert " is the fastest plan that fits: " in text and " to use (predicted in " in text
        assert "for 64 x 64 pixels" in text and "denoising: " in text
        with MemoryMonitor(optimizer, False, images=(1, 64, 64)) as monitor:
            run(pipe, size=64, steps=2)
    assert monitor.peak_allocated is not None and monitor.peak_allocated <= room
    assert max(it.predicted for it in monitor.verified) <= room


@pytest.mark.parametrize("when", [100, 900], ids=["while it is applied", "while it runs"])
def test_a_level_that_ran_out_is_not_taken_again_at_that_size(
    patient: None, accelerator: Any, when: int
) -> None:
    one = handle(plain(), accelerator.device, config("fastest", cleanup="always"))
    generate(one)
    assert {row.level for row in rows()} == {"none"}
    accelerator.fail_allocation(when)
    with pytest.raises(torch.OutOfMemoryError):
        generate(one)
    assert {(row.outcome, row.level) for row in rows()[4:]} == {(OUT_OF_MEMORY, "none")}
    assert len(rows()[4:]) == (1 if when == 100 else 3), "text encoding, denoising, all"
    generate(one)
    assert (rows()[-1].level, rows()[-1].outcome) == ("balanced", FITS)
    # A smaller image is another question.
    assert (
        pipeline_choice.choose(
            one.config,
            one.pipeline,
            {},
            accelerator.device,
            Work(48, 48, steps=2),
        ).config.level.value
        == "none"
    )


def test_what_takes_too_long_is_made_after_the_run(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_plans, "PATIENCE", 0.0)
    accelerator(capacity="7G")
    pipe = plain()
    optimizer = MemoryOptimizer("fastest")
    optimizer.optimize_pipeline(pipe, WORK)
    text = optimizer.report.text()
    assert text.startswith("Level aggressive on ") and "7.00 GB, under 8 GB: aggressive" in text
    assert "chosen by the device's memory, not by prediction: tracing text_encoder" in text
    assert not (learning.stores.folder() / "traces").exists(), "not before the run"
    with MemoryMonitor(optimizer, False, images=(1, 64, 64)) as monitor:
        run(pipe, size=64, steps=2)
    assert {it.predicted for it in monitor.verified} == {None}
    assert planning.finish(120)
    optimizer.undo()
    optimizer.optimize_pipeline(pipe, WORK)
    assert optimizer.config.level.value == "none"
    assert "none is the fastest plan that fits" in optimizer.report.text()
    optimizer.undo()


def test_a_pipeline_that_cannot_be_traced_falls_back_and_says_so(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("as planned")

    monkeypatch.setattr(pipeline_plans, "PipelineTraces", broken)
    monkeypatch.setattr(pipeline_plan, "PipelineTraces", broken)
    accelerator(capacity="7G")
    with MemoryOptimizer("fastest") as optimizer:
        optimizer.optimize_pipeline(plain(), WORK)
        assert optimizer.config.level.value == "aggressive"
        assert "cannot be predicted (RuntimeError: as planned)" in optimizer.report.text()
    budget = config("fastest", budget_bytes=64 * MIB)
    with MemoryOptimizer(budget) as optimizer:
        optimizer.optimize_pipeline(plain(), WORK)
        assert "is kept by estimate: " in optimizer.report.text()


@pytest.mark.parametrize("asked", ["none", "fastest"])
def test_a_budget_is_kept_by_prediction_and_the_monitor_says_so(
    patient: None, accelerator: Any, asked: str
) -> None:
    pipe = plain()
    budget = int(foreseen(pipe, accelerator.device, "balanced") * 1.04)
    one = handle(pipe, accelerator.device, config(asked, budget_bytes=budget, cleanup="always"))
    generate(one)
    assert one.optimizer is not None and one.optimizer.config.offload == "planned"
    (ran,) = verified.runs()
    assert (ran.name, ran.budget) == ("tiny", budget)
    assert max(it.measured for it in ran.stages) <= budget
    assert all(abs(it.error) < 0.05 for it in ran.stages), ran
    text, figures = session.monitor()
    assert "Predicted and measured:\ntiny:\n  text encoding: " in text
    assert " predicted, " in text and ": kept (" in text
    assert figures["runs"] == [ran.to_dict()]


def test_what_was_predicted_is_what_runs(patient: None, accelerator: Any) -> None:
    pipe, work = plain(), Work(128, 128, steps=1)
    asked = config("balanced", budget_bytes=256 * MIB)
    with MemoryOptimizer(asked) as optimizer:
        optimizer.optimize_pipeline(pipe, work)
        assert optimizer.config.budget_bytes == 256 * MIB
        with MemoryMonitor(optimizer, False, images=(1, 128, 128)) as monitor:
            run(pipe, size=128, steps=1)
    decoding = next(it for it in monitor.verified if it.stage == "decoding")
    assert abs(decoding.error or 1) < 0.05, "the VAE did not fill the budget with its maps"


def test_a_budget_nothing_keeps_names_the_smallest_that_does(
    patient: None, accelerator: Any
) -> None:
    one = handle(plain(), accelerator.device, config("fastest", budget_bytes=MIB))
    with pytest.raises(BudgetError, match="does not hold this pipeline") as caught:
        generate(one)
    named = str(caught.value).partition("give ")[2].partition(" or more")[0]
    asked = config("fastest", budget_bytes=parse_bytes(named), cleanup="always")
    generate(handle(one.pipeline, accelerator.device, asked))
    (ran,) = verified.runs()
    assert max(it.measured for it in ran.stages) <= asked.budget_bytes


def test_the_same_choice_moves_nothing_twice(patient: None, accelerator: Any) -> None:
    one = handle(plain(), accelerator.device, config("fastest", cleanup="off"))
    one.activate()
    before = one.optimizer
    accelerator.reset_counters()
    generate(one)
    assert one.optimizer is before
    assert accelerator.counters()["h2d"] < one.loaded.size // 2, "the weights were there already"
    assert verified.runs()[0].stages[0].predicted is not None
    one.loaded.undo()


def test_patience_is_shared_by_all_that_is_missing(accelerator: Any, monkeypatch) -> None:
    pipe = plain()
    monkeypatch.setattr(pipeline_plans, "A_MODULE", 1e-3)
    foresee = pipeline_plans.PipelineForesight(pipe, WORK, accelerator.device, patience=0.1)
    foresee._wait_for(["text_encoder"], False)
    assert foresee.patience < 0.1
    with pytest.raises(TooSlow, match=r"tracing unet would take about 0\.3 s"):
        foresee._wait_for(["unet"], False)
