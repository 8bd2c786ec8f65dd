"""Load, optimise, generate, release: whatever ends a run, the device holds what it held before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory import diffusers_session as session
from lowtide.memory.adapters.diffusers import existing_offload, modules_of
from lowtide.memory.adapters.models_folder import add_root, remove_root
from lowtide.memory.adapters.progress import listening, stop
from lowtide.memory.adapters.synthetic import write_pipeline
from lowtide.memory.errors import BudgetError, ConfigError, Interrupted, TargetError
from lowtide.memory.handles import PipelineHandle, weight_bytes
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
from lowtide.memory.peaks import PeakWindow
from lowtide.memory.strategies.budget import estimate
from lowtide.memory.units import MIB, parse_bytes
from lowtide.tests.memory.tiny import held, now

LEVELS = ("none", "balanced", "aggressive", "ultra")


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("diffusers")
    write_pipeline(folder / "tiny", "tiny-sd15", dtype="float32")
    add_root(folder)
    yield folder
    remove_root(folder)


def config(level: str, **more: Any) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level(level, **more)


def image(handle: Any, **asked: Any) -> torch.Tensor:
    usual: dict[str, Any] = {
        "prompt": "a cat",
        "negative": "bad",
        "width": 64,
        "height": 64,
        "steps": 2,
        "guidance": 5.0,
        "seed": 3,
        "batch_size": 1,
    }
    return session.generate(handle, **{**usual, **asked})


def test_a_pipeline_is_loaded_into_host_memory(accelerator: Any) -> None:
    base = held(accelerator)
    assert "tiny" in session.folders()
    handle = session.load("tiny", "auto")
    assert now(accelerator) == base
    assert handle.config.level is OptimizationLevel.NONE
    assert handle.device == accelerator.device
    assert (handle.loaded.name, handle.optimizer) == ("tiny", None)


@pytest.mark.parametrize("level", LEVELS)
def test_a_handle_has_its_own_configuration_and_shares_the_pipeline(
    accelerator: Any, level: str
) -> None:
    plain = session.load("tiny", "auto")
    optimised, text = session.optimize(config(level), plain)
    assert optimised.pipeline is plain.pipeline and optimised is not plain
    assert plain.config.level is OptimizationLevel.NONE
    assert optimised.config.level.value == level
    assert text.startswith(f"Level {level} on {accelerator.device}")
    optimised.loaded.undo()


def test_each_branch_of_a_graph_runs_under_its_own_configuration(accelerator: Any) -> None:
    plain = session.load("tiny", "auto")
    one, _ = session.optimize(config("balanced"), plain)
    other, _ = session.optimize(config("aggressive"), plain)
    image(one)
    assert existing_offload(plain.pipeline).kind == "component"
    image(other)
    assert existing_offload(plain.pipeline).kind == "sequential"
    image(plain)
    assert existing_offload(plain.pipeline) is None
    plain.loaded.undo()


@pytest.mark.parametrize("level", LEVELS)
def test_after_a_run_with_cleanup_nothing_is_left(accelerator: Any, level: str) -> None:
    base = held(accelerator)
    handle, _ = session.optimize(config(level, cleanup="always"), session.load("tiny", "auto"))
    first = image(handle)
    assert now(accelerator) == base
    assert torch.equal(image(handle), first)
    assert now(accelerator) == base


def test_without_cleanup_a_whole_pipeline_stays(accelerator: Any) -> None:
    handle, _ = session.optimize(config("none", cleanup="off"), session.load("tiny", "auto"))
    image(handle)
    assert handle.loaded.on_device(accelerator.device) >= handle.loaded.size
    handle.loaded.undo()


class StopAt:
    """A listener that ends the run at its n-th chance; 0 is before the first step."""

    def __init__(self, n: int) -> None:
        self.left = n

    def step(self, done: int, total: int, latents: Any) -> None:
        pass

    def check(self) -> None:
        if self.left == 0:
            stop()
        self.left -= 1


@pytest.mark.parametrize("level", LEVELS)
def test_an_interrupt_at_any_step_leaves_what_was_held_before(accelerator: Any, level: str) -> None:
    base = held(accelerator)
    handle, _ = session.optimize(config(level, cleanup="always"), session.load("tiny", "auto"))
    expected = image(handle)
    for step in range(3):
        with pytest.raises(Interrupted), listening(StopAt(step)):
            image(handle)
        assert now(accelerator) == base, step
    assert torch.equal(image(handle), expected)


@pytest.mark.parametrize("level", ["none", "aggressive"])
def test_an_interrupt_without_cleanup_leaves_no_more_than_before(
    accelerator: Any, level: str
) -> None:
    handle, _ = session.optimize(config(level, cleanup="off"), session.load("tiny", "auto"))
    image(handle)
    before = held(accelerator)[0]
    with pytest.raises(Interrupted), listening(StopAt(1)):
        image(handle)
    assert accelerator.allocated <= before
    handle.loaded.undo()


def test_running_out_of_memory_leaves_nothing_and_the_next_run_works(accelerator: Any) -> None:
    base = held(accelerator)
    handle, _ = session.optimize(config("ultra"), session.load("tiny", "auto"))
    expected = image(handle)
    accelerator.fail_allocation(100)
    with pytest.raises(torch.OutOfMemoryError):
        image(handle)
    assert now(accelerator) == base
    assert torch.equal(image(handle), expected)


def test_an_idle_pipeline_makes_room_for_another(accelerator: Any) -> None:
    one, other = (session.load("tiny", "auto") for _ in range(2))
    expected = image(one)
    size = one.loaded.on_device(accelerator.device)
    image(other)
    assert one.loaded.on_device(accelerator.device) == size, "there was room for both"
    other.loaded.undo()
    accelerator(capacity=held(accelerator)[0] + size * 3 // 4)
    assert torch.equal(image(other), expected)
    assert one.loaded.on_device(accelerator.device) == 0
    assert torch.equal(image(one), expected)
    assert other.loaded.on_device(accelerator.device) == 0
    one.loaded.undo()


def test_an_idle_pipeline_makes_room_under_a_budget(accelerator: Any) -> None:
    one = session.load("tiny", "auto")
    image(one)
    need = estimate(config("none"), one.pipeline, modules_of(one.pipeline), edge=64).total
    asked = config("none", budget_bytes=need * 9 // 8 + MIB)
    plain = session.load("tiny", "auto")
    other = PipelineHandle(plain.loaded, asked, plain.device)
    image(other)
    assert one.loaded.on_device(accelerator.device) == 0
    other.loaded.undo()


def under(loaded: Any, budget: int, level: str = "none") -> PipelineHandle:
    return PipelineHandle(loaded.loaded, config(level, budget_bytes=budget), loaded.device)


def peak_of(accelerator: Any, handle: Any, **asked: Any) -> int:
    window = PeakWindow(accelerator.device)
    image(handle, **asked)
    peak = window.close().allocated
    assert peak is not None
    return peak


def test_a_budget_is_planned_for_the_size_asked_for(accelerator: Any) -> None:
    plain = session.load("tiny", "auto")
    size = weight_bytes(plain.pipeline)
    handle = under(plain, int(size * 1.2))
    for edge, offload in ((64, "none"), (256, "planned"), (64, "none")):
        peak = peak_of(accelerator, handle, width=edge, height=edge, steps=1)
        assert handle.optimizer is not None
        assert handle.optimizer.config.offload == offload, edge
        assert peak <= size * 1.2
    handle.loaded.undo()


def test_a_batch_that_does_not_fit_is_made_in_parts(
    accelerator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = session.load("tiny", "auto")
    asked: dict[str, Any] = {"width": 128, "height": 128, "batch_size": 5, "steps": 2}
    expected = image(plain, **asked)
    plain.loaded.undo()
    alone = [image(plain, **{**asked, "seed": 3 + n, "batch_size": 1}) for n in (0, 3)]
    plain.loaded.undo()
    with pytest.raises(BudgetError) as caught:
        image(under(plain, MIB), **asked)
    named = re.search(r"give ([\d.]+ [KMG]B) or more", str(caught.value))
    assert named is not None
    few = under(plain, int(parse_bytes(named[1].replace(" ", "")) * 0.9))
    with caplog.at_level("INFO", "lowtide"):
        peak = peak_of(accelerator, few, **asked)
    assert "of the 5 images at once: they are made in parts" in caplog.text
    assert few.config.budget_bytes is not None and peak <= few.config.budget_bytes
    caplog.clear()
    images = image(few, **asked)
    assert images.shape == expected.shape
    assert float((images - expected).abs().max()) < 1e-3
    assert all(
        float((images[n] - one[0]).abs().max()) < 1e-3 for n, one in zip((0, 3), alone, strict=True)
    )
    few.loaded.undo()


def test_a_budget_nothing_keeps_at_this_size_names_the_smallest(accelerator: Any) -> None:
    handle = under(session.load("tiny", "auto"), 4 * MIB, "ultra")
    accelerator.reset_counters()
    with pytest.raises(BudgetError, match=r"at 512 x 512 pixels; give .* or more"):
        image(handle, width=512, height=512)
    assert accelerator.counters()["h2d"] == 0


def test_a_peak_above_the_budget_is_said_with_both_figures(
    accelerator: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session.load("tiny", "auto")

    def fails(*_: Any, **__: Any) -> None:
        raise TargetError("it cannot be traced")

    monkeypatch.setattr("lowtide.memory.adapters.pipeline_plan.PipelineTraces", fails)
    budget = estimate(config("none"), plain.pipeline, modules_of(plain.pipeline), edge=64).total
    handle = under(plain, 2 * budget)
    with caplog.at_level("WARNING", "lowtide"):
        image(handle, steps=1)
        assert caplog.messages == []
        monkeypatch.setattr("lowtide.memory.strategies.budget._activations", lambda *_: -budget)
        image(under(plain, 4 * MIB), steps=1)
    (message,) = caplog.messages
    assert "more than its budget of 4.0 MB" in message
    assert message.startswith(tuple("123456789"))
    handle.loaded.undo()


def test_a_request_that_cannot_work_moves_nothing(accelerator: Any) -> None:
    handle = session.load("tiny", "auto")
    accelerator.reset_counters()
    for asked in ({"width": 60}, {"steps": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(asked))):
            image(handle, **asked)
    assert accelerator.counters()["h2d"] == 0
    assert handle.optimizer is None


def test_wrong_inputs_name_what_to_plug_in(accelerator: Any) -> None:
    with pytest.raises(TargetError, match="not a Lowtide pipeline"):
        image(torch.nn.Linear(1, 1))
    with pytest.raises(TargetError, match="not a Lowtide pipeline"):
        session.optimize(config("none"), None)
    with pytest.raises(TargetError, match="Lowtide Memory Level Selector"):
        session.optimize("ultra", session.load("tiny", "auto"))


def test_a_fingerprint_follows_the_files(root: Path) -> None:
    first = session.folder_fingerprint("tiny")
    assert len(first) == 64
    extra = root / "tiny" / "unet" / "note.txt"
    extra.write_text("x")
    assert session.folder_fingerprint("tiny") != first
    extra.unlink()
    assert session.folder_fingerprint("../etc") == ""
