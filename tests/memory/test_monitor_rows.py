"""What a monitored run of a pipeline leaves in the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory import diffusers_session, learning, monitor_rows
from lowtide.memory.adapters.synthetic import build
from lowtide.memory.errors import Interrupted
from lowtide.memory.handles import LoadedPipeline, PipelineHandle
from lowtide.memory.history_rows import FAILED, FITS, INTERRUPTED, OUT_OF_MEMORY, Row
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.monitor import MemoryMonitor
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.tests.memory.tiny import small_run

STAGES = ["text_encoding", "denoising", "decoding", "all"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_HOME", str(tmp_path))
    monkeypatch.delenv("LOWTIDE_HISTORY", raising=False)


def rows() -> list[Row]:
    assert learning.flush()
    return learning.history()._both(lambda table: table.all())


def optimised(name: str = "tiny-sd15", level: str = "balanced", **more: Any) -> MemoryOptimizer:
    optimizer = MemoryOptimizer(MemoryOptimizationConfig.from_level(level, **more))
    optimizer.optimize_pipeline(build(name, "float32"))
    return optimizer


@pytest.mark.parametrize(
    ("name", "shapes", "size"),
    [("tiny-sd15", "1x64x64", 64 * 64), ("tiny-flux", "1x1x4096", 64 * 64)],
)
def test_a_monitored_run_is_a_row_a_stage_and_one_for_all(
    accelerator: Any, name: str, shapes: str, size: int
) -> None:
    optimizer = optimised(name)
    with MemoryMonitor(optimizer) as monitor:
        small_run(optimizer.pipeline)
    found = rows()
    assert [row.stage for row in found] == STAGES
    for row in found:
        assert (row.outcome, row.level, row.key.plan) == (FITS, "balanced", "balanced")
        assert (row.key.shapes, row.key.size) == (shapes, size)
        assert type(optimizer.pipeline).__name__ in row.key.model
        assert accelerator.device.type in row.key.gpu
        peak = monitor.stages.get(row.stage)
        assert row.measured == (monitor.peak_allocated if peak is None else peak.allocated)
        assert row.seconds == (monitor.seconds if peak is None else peak.seconds)
        assert row.free is not None and row.free > (row.measured or 0)
        learning.expect(row.key, row.stage, 12345, 0.5)
    with MemoryMonitor(optimizer):
        small_run(optimizer.pipeline)
    assert {row.predicted for row in rows()[4:]} == {12345}
    assert {row.predicted_seconds for row in rows()[4:]} == {0.5}


def test_guidance_counts_an_image_once(accelerator: Any) -> None:
    optimizer = optimised()
    with MemoryMonitor(optimizer):
        small_run(optimizer.pipeline, guidance=5.0)
    with MemoryMonitor(optimizer):
        small_run(optimizer.pipeline, guidance=0.0)
    assert {row.key.shapes for row in rows()} == {"1x64x64"}
    assert len(rows()) == 8


def test_the_model_has_one_name_under_every_plan(accelerator: Any) -> None:
    for level in ("none", "ultra"):
        optimizer = optimised(level=level)
        with MemoryMonitor(optimizer):
            small_run(optimizer.pipeline)
        optimizer.undo()
    found = rows()
    assert {row.level for row in found} == {"none", "ultra"}
    assert len({row.key.model for row in found}) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OUT_OF_MEMORY),
        (ValueError("as planned"), FAILED),
        (Interrupted("stopped"), INTERRUPTED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_how_it_ended_is_kept(accelerator: Any, error: BaseException, outcome: str) -> None:
    optimizer = optimised()
    with pytest.raises(type(error)), MemoryMonitor(optimizer):
        small_run(optimizer.pipeline)
        raise error
    assert {row.outcome for row in rows()} == {outcome}


def test_what_is_not_known_is_left_out(accelerator: Any) -> None:
    optimizer = optimised()
    with MemoryMonitor(optimizer.pipeline):
        small_run(optimizer.pipeline)
    with MemoryMonitor(accelerator.device):
        torch.zeros(10, device=accelerator.device)
    with MemoryMonitor(optimizer):
        pass
    assert rows() == []


def test_a_configuration_can_say_no(accelerator: Any) -> None:
    optimizer = optimised(history=False)
    with MemoryMonitor(optimizer):
        small_run(optimizer.pipeline)
    assert rows() == []


def test_a_run_never_fails_for_its_history(accelerator: Any, monkeypatch, caplog) -> None:
    monkeypatch.setattr(monitor_rows, "_key", lambda *_: 1 / 0)
    optimizer = optimised()
    with MemoryMonitor(optimizer) as monitor:
        small_run(optimizer.pipeline)
    assert monitor.stages and rows() == []
    assert "was not handed to the history" in caplog.text


def test_generate_tells_the_history_what_was_asked_for(accelerator: Any) -> None:
    config = MemoryOptimizationConfig.from_level("aggressive")
    loaded = LoadedPipeline(build("tiny-sd15", "float32"), "tiny")
    handle = PipelineHandle(loaded, config, accelerator.device)
    words = {"prompt": "a cat nobody shall know of", "negative": "dogs"}
    numbers = {"width": 64, "height": 128, "steps": 1, "guidance": 5.0, "seed": 1, "batch_size": 2}
    diffusers_session.generate(handle, **words, **numbers)
    found = rows()
    assert [row.stage for row in found] == STAGES
    assert {(row.key.shapes, row.key.size) for row in found} == {("2x128x64", 2 * 128 * 64)}
    assert {row.level for row in found} == {"aggressive"}
    path = learning.history().path
    assert path is not None
    learning.history().close()
    assert b"cat" not in path.read_bytes() and b"dogs" not in path.read_bytes()
    quiet = MemoryOptimizationConfig.from_level("aggressive", history=False)
    diffusers_session.generate(
        PipelineHandle(loaded, quiet, accelerator.device), **words, **numbers
    )
    assert len(rows()) == len(found)
