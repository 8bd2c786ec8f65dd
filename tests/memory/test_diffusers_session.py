"""Load, optimise, generate, release: whatever ends a run, the device holds what it held before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory import diffusers_session as session
from lowtide.memory.adapters.diffusers import existing_offload
from lowtide.memory.adapters.models_folder import add_root, remove_root
from lowtide.memory.adapters.progress import listening, stop
from lowtide.memory.adapters.synthetic import write_pipeline
from lowtide.memory.errors import ConfigError, Interrupted, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig, OptimizationLevel
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
