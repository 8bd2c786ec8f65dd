"""The monitor: peaks of a run and its stages, what is left, and no trace on the pipeline."""

import json

import pytest
import torch
from lowtide.memory import backend, monitor, peaks
from lowtide.memory.errors import LowtideError, TargetError
from lowtide.memory.monitor import MemoryMonitor
from lowtide.memory.units import GIB, MIB
from lowtide.tests.memory.toys import Block, Optimizer, Pipeline

WEIGHTS = 7 * MIB


@pytest.fixture
def pipeline(accelerator):
    return Pipeline().to(accelerator.device)


def near(count, expected):
    """Equal but for the odd tensors of a few bytes, 512 each."""
    return expected <= count < expected + 16 * 512


# -- figures -----------------------------------------------------------------------------------


def test_the_peak_is_the_highest_allocation_of_the_block(accelerator):
    base = accelerator.allocated
    torch.empty(9 * MIB, dtype=torch.uint8, device=accelerator.device)
    with MemoryMonitor(accelerator.device) as found:
        torch.empty(4 * MIB, dtype=torch.uint8, device=accelerator.device)
        assert found.get_peak_memory() == (base + 4 * MIB) / GIB
        torch.empty(5 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert found.peak_allocated == base + 5 * MIB
    assert found.get_peak_memory() == (base + 5 * MIB) / GIB
    assert found.peak_reserved >= found.peak_allocated
    assert found.seconds > 0


def test_each_stage_has_its_own_peak(accelerator, pipeline):
    base = accelerator.allocated - WEIGHTS
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        pipeline(steps=3)
    assert list(found.stages) == ["text_encoding", "denoising", "decoding"]
    expected = {"text_encoding": 2, "denoising": 3, "decoding": 8}
    for name, scratch in expected.items():
        assert near(found.stages[name].allocated - base, WEIGHTS + scratch * MIB), name
        assert found.stages[name].reserved >= found.stages[name].allocated
        assert 0 < found.stages[name].seconds < found.seconds
        assert found.stages[name].host is None
    assert found.peak_allocated == found.stages["decoding"].allocated


def test_what_runs_between_stages_counts_for_the_run_only(accelerator, pipeline):
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        pipeline()
        torch.empty(40 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert found.peak_allocated > 40 * MIB > found.stages["decoding"].allocated


def test_a_stage_that_comes_again_keeps_its_highest_peak(accelerator, pipeline):
    pipeline.unet.work_mb = 6
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        pipeline()
        first = found.stages["denoising"]
        pipeline.unet.work_mb = 1
        pipeline()
    assert found.stages["denoising"].allocated == first.allocated
    assert found.stages["denoising"].seconds > first.seconds


def test_encoding_an_image_belongs_to_the_vaes_stage(accelerator, pipeline):
    with MemoryMonitor(pipeline, release_on_exit=False) as found, torch.no_grad():
        pipeline.vae.encode(torch.ones(1, device=accelerator.device))
    assert list(found.stages) == ["decoding"]


def test_nested_monitors_each_see_their_own_block(accelerator, pipeline):
    base = accelerator.allocated
    with MemoryMonitor(accelerator.device, release_on_exit=False) as outer:
        torch.empty(30 * MIB, dtype=torch.uint8, device=accelerator.device)
        with MemoryMonitor(pipeline, release_on_exit=False) as inner:
            pipeline()
        with MemoryMonitor(accelerator.device, release_on_exit=False) as last:
            torch.empty(1 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert outer.peak_allocated == base + 30 * MIB
    assert inner.peak_allocated < base + 10 * MIB
    assert near(last.peak_allocated, base + 1 * MIB)


def test_a_monitor_runs_again_but_not_within_itself(accelerator):
    again = MemoryMonitor(accelerator.device)
    with again, pytest.raises(TargetError, match="already running"):
        again.__enter__()
    with again:
        torch.empty(2 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert again.peak_allocated == accelerator.allocated + 2 * MIB


def test_before_the_block_there_is_no_figure(accelerator):
    with pytest.raises(LowtideError, match="nothing was measured"):
        MemoryMonitor(accelerator.device).get_peak_memory()


def test_on_the_cpu_the_process_is_measured():
    with MemoryMonitor("cpu") as found:
        pass
    assert found.peak_allocated is found.peak_reserved is None
    assert found.peak_host > 10 * MIB
    assert found.get_peak_memory() == found.peak_host / GIB
    assert "RAM (process, sampled)" in found.text()


def test_stages_on_the_cpu_carry_the_process(monkeypatch):
    pipeline = Pipeline()
    with MemoryMonitor(pipeline, device="cpu") as found:
        pipeline()
    assert found.stages["denoising"].host > 10 * MIB
    assert found.stages["denoising"].allocated is None
    assert "denoising: " in found.text()


# -- what is left ------------------------------------------------------------------------------


def test_memory_is_released_on_exit(accelerator, pipeline):
    before = accelerator.allocated - WEIGHTS
    with MemoryMonitor(pipeline) as found:
        pipeline()
    assert found.left_allocated == accelerator.allocated < before
    assert found.left_reserved == accelerator.reserved
    assert found.receipt.by_owner["unet"] >= 4 * MIB
    assert near(pipeline.unet.weight.nbytes, 4 * MIB) and pipeline.unet.weight.device.type == "cpu"


def test_without_release_everything_stays_where_it_is(accelerator, pipeline):
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        pipeline()
    assert found.receipt is None
    assert found.left_allocated == accelerator.allocated >= WEIGHTS
    assert pipeline.unet.weight.device == accelerator.device


def test_a_monitor_of_a_device_releases_what_nobody_uses(accelerator):
    kept = torch.ones(MIB, dtype=torch.uint8, device=accelerator.device)
    with MemoryMonitor() as found:
        torch.empty(64 * MIB, dtype=torch.uint8, device=accelerator.device)
    assert found.device == accelerator.device
    assert found.left_reserved < 64 * MIB
    assert kept.sum().item() == MIB


# -- failures ----------------------------------------------------------------------------------


def test_a_body_that_raises_still_leaves_figures_and_no_memory(accelerator, pipeline):
    accelerator(capacity="48M")
    pipeline.vae.work_mb = 64
    base = accelerator.allocated - WEIGHTS
    with pytest.raises(torch.OutOfMemoryError), MemoryMonitor(pipeline) as found:
        pipeline()
    assert list(found.stages) == ["text_encoding", "denoising", "decoding"]
    assert near(found.peak_allocated - base, WEIGHTS + 3 * MIB)
    assert found.stages["decoding"].allocated >= WEIGHTS
    assert found.left_allocated == accelerator.allocated < base + 512
    assert vars(pipeline.vae).keys() == vars(Pipeline().vae).keys()


def test_a_failed_run_lets_go_of_its_tensors(accelerator):
    base = accelerator.allocated

    def work():
        latents = torch.ones(5 * MIB, dtype=torch.uint8, device=accelerator.device)
        raise ValueError(f"stopped at {latents.numel()}")

    with pytest.raises(ValueError, match="stopped at") as caught, MemoryMonitor() as found:
        work()
    assert caught.value is not None  # the exception lives on, its frames hold nothing
    assert found.left_allocated == base


def test_a_broken_component_is_timed_up_to_its_failure(accelerator, pipeline):
    def fail(module, args):
        raise RuntimeError("broken")

    handle = pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"), MemoryMonitor(pipeline) as found:
        pipeline()
    handle.remove()
    assert found.stages["denoising"].seconds > 0


def test_a_device_that_fails_at_the_end_is_reported_after_the_figures(accelerator, monkeypatch):
    def lost(device):
        raise RuntimeError("device lost")

    found = MemoryMonitor(accelerator.device, release_on_exit=False)
    with pytest.raises(RuntimeError, match="device lost"), found:
        monkeypatch.setattr(backend, "synchronize", lost)
    assert found.left_allocated == accelerator.allocated
    with pytest.raises(ValueError, match="first"), found:
        raise ValueError("first")
    assert not peaks._open[accelerator.device]


# -- targets -----------------------------------------------------------------------------------


def test_an_optimizer_stands_for_its_pipeline(accelerator, pipeline):
    optimizer = Optimizer(None, accelerator.device)
    found = MemoryMonitor(optimizer)
    optimizer.optimize_pipeline(pipeline)
    with found:
        pipeline()
    assert set(found.stages) == {"text_encoding", "denoising", "decoding"}
    assert "unet" in found.receipt.by_owner


def test_an_optimizer_without_pipeline_is_measured_all_the_same(accelerator):
    with MemoryMonitor(Optimizer(None, accelerator.device)) as found:
        torch.empty(MIB, dtype=torch.uint8, device=accelerator.device)
    assert found.peak_allocated == accelerator.allocated + MIB
    assert found.stages == {}


def test_a_module_leaves_the_device(accelerator):
    module = Block(1, 1).to(accelerator.device)
    with MemoryMonitor(module) as found:
        module(torch.ones(1, device=accelerator.device))
    assert module.weight.device.type == "cpu"
    assert found.receipt.by_owner["Block"] >= MIB


def test_the_device_is_that_of_the_pipeline(accelerator):
    accelerator(devices=2)
    second = torch.device(accelerator.device.type, 1)
    pipeline = Pipeline()
    pipeline._execution_device = second
    assert MemoryMonitor(pipeline).device == second
    pipeline._execution_device = torch.device("cpu")
    assert MemoryMonitor(pipeline).device == accelerator.device
    assert MemoryMonitor(pipeline, device="cpu").device.type == "cpu"


@pytest.mark.parametrize("target", [3, [], object()])
def test_what_cannot_be_monitored_is_named(target):
    with pytest.raises(TargetError, match=type(target).__name__):
        MemoryMonitor(target)


# -- for readers -------------------------------------------------------------------------------


def test_the_figures_are_json_and_text(accelerator, pipeline):
    with MemoryMonitor(pipeline) as found:
        pipeline()
    values = json.loads(json.dumps(found.to_dict()))
    assert values["peak_allocated"] == found.peak_allocated
    assert values["stages"]["denoising"]["allocated"] == found.stages["denoising"].allocated
    assert values["receipt"]["remaining"] == 0
    lines = found.text().splitlines()
    assert str(accelerator.device) in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "text encoding",
        "denoising",
        "decoding",
        "left",
    ]
    assert monitor.format_bytes(found.peak_allocated) in lines[0]
