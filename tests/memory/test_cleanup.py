"""release(): nothing stays on the device, everything stays usable, the receipt adds up."""

import gc
import json

import pytest
import torch
from lowtide.memory import backend, cleanup
from lowtide.memory.cleanup import release
from lowtide.memory.errors import DeviceError, TargetError
from lowtide.memory.receipt import CACHE, OTHERS
from lowtide.memory.units import GIB, MIB
from lowtide.tests.memory.toys import Block, Optimizer, Pipeline


@pytest.fixture
def pipeline(accelerator):
    return Pipeline().to(accelerator.device)


@pytest.fixture
def collections(monkeypatch):
    """The generations collected, in order; the collecting is done."""
    asked = []
    collect = gc.collect

    def counted(generation=2):
        asked.append(generation)
        return collect(generation)

    monkeypatch.setattr(cleanup.gc, "collect", counted)
    return asked


def tensor(mb, device):
    return torch.zeros(mb * MIB, dtype=torch.uint8, device=device)


class Cycle:
    def __init__(self, mb, device):
        self.own = self
        self.tensor = tensor(mb, device)


# -- the device --------------------------------------------------------------------------------


def test_a_pipeline_leaves_nothing_and_runs_on(accelerator, pipeline):
    base = accelerator.allocated - 7 * MIB
    expected = pipeline()
    receipt = release(pipeline)
    assert accelerator.allocated < base + 512
    assert receipt.remaining == 0 and receipt.errors == ()
    assert torch.equal(pipeline(), expected)  # on the CPU
    assert torch.equal(pipeline.to(accelerator.device)(), expected)


def test_tensors_of_components_and_of_the_pipeline_itself_leave_too(accelerator, pipeline):
    base = accelerator.allocated
    pipeline.scheduler.outputs = [tensor(2, accelerator.device)]
    pipeline.kept = {"latents": (tensor(3, accelerator.device),)}
    pipeline.unet.cache = tensor(1, accelerator.device)
    receipt = release(pipeline)
    assert receipt.by_owner["scheduler"] == 2 * MIB
    assert receipt.by_owner["pipeline"] == 3 * MIB
    assert receipt.by_owner["unet"] >= 5 * MIB
    assert pipeline.kept["latents"][0].device.type == "cpu"
    assert accelerator.allocated < base


def test_each_owner_is_named_and_the_sum_is_what_came_back(accelerator, pipeline):
    release()
    before = accelerator.reserved
    tensor(5, accelerator.device)
    lost = Cycle(2, accelerator.device)
    del lost
    receipt = release(pipeline, collect=True)
    assert receipt.by_owner["text_encoder"] == MIB + 512
    assert receipt.by_owner["unet"] == 4 * MIB + 512
    assert receipt.by_owner["vae"] == 2 * MIB + 512
    assert receipt.by_owner[OTHERS] == 2 * MIB
    assert receipt.by_owner[CACHE] > 0
    assert sum(receipt.by_owner.values()) == receipt.freed
    assert receipt.before.reserved >= before
    assert receipt.after.reserved == accelerator.reserved
    assert receipt.after.free == accelerator.free > receipt.before.free


def test_several_targets_are_released_together(accelerator, pipeline):
    block = Block(1, 1).to(accelerator.device)
    optimizer = Optimizer(pipeline, accelerator.device)
    receipt = release(block, optimizer)
    assert {"Block", "unet", "vae"} <= set(receipt.by_owner)
    assert receipt.remaining == 0
    assert release(Optimizer(None, accelerator.device)).device == str(accelerator.device)


def test_tied_weights_stay_tied(accelerator):
    module = Block(1, 0)
    module.child = Block(1, 0)
    module.child.weight = module.weight
    module.to(accelerator.device)
    receipt = release(module)
    assert module.child.weight is module.weight
    assert MIB < receipt.by_owner["Block"] < 2 * MIB


def test_a_tensor_the_caller_keeps_is_not_claimed(accelerator):
    block = Block(2, 0).to(accelerator.device)
    kept = block.weight.data
    receipt = release(block)
    assert receipt.by_owner.get("Block", 0) < MIB
    assert receipt.remaining == 0
    assert accelerator.allocated >= kept.nbytes


def test_with_a_device_given_only_that_one_is_left(accelerator):
    accelerator(devices=2)
    other = torch.device(accelerator.device.type, 1)
    block = Block(1, 0).to(accelerator.device)
    block.child = Block(1, 0).to(other)
    receipt = release(block, device=other)
    assert receipt.device == str(other)
    assert block.child.weight.device.type == "cpu"
    assert block.weight.device == accelerator.device
    release(block)
    assert block.weight.device.type == "cpu"
    accelerator.empty_cache()


def test_meta_weights_are_left_alone(accelerator):
    module = torch.nn.Linear(4, 4, device="meta")
    release(module)
    assert module.weight.device.type == "meta"


def test_without_an_accelerator_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(backend, "_is_available", lambda kind: False)
    receipt = release(Block(1, 0))
    assert receipt.device == "cpu:0" or receipt.device == "cpu"
    assert receipt.freed is None and receipt.by_owner == {}
    assert "no allocator to measure" in receipt.text()


def test_a_device_nobody_used_is_not_woken(accelerator, monkeypatch):
    monkeypatch.setattr(accelerator.module, "is_initialized", lambda: False, raising=False)
    monkeypatch.setattr(backend, "mem_get_info", lambda device: pytest.fail("made a context"))
    assert release(device=accelerator.device).before.free is None


# -- what it costs -----------------------------------------------------------------------------


def test_nothing_is_collected_when_nothing_is_left(accelerator, pipeline, collections):
    release()
    if accelerator.allocated > 9 * MIB:
        pytest.fail("an earlier test left tensors behind")
    collections.clear()
    receipt = release(pipeline)
    assert accelerator.allocated == 0
    assert collections == []
    assert receipt.collect_seconds < 0.001


def test_young_cycles_are_found_first(accelerator, collections):
    release()
    collections.clear()
    lost = Cycle(2, accelerator.device)
    del lost
    receipt = release()
    assert collections[0] == 1
    assert collections[1:] == ([2] if accelerator.allocated else [])
    assert receipt.by_owner[OTHERS] == 2 * MIB


def test_old_cycles_are_found_after_them(accelerator, collections):
    lost = Cycle(2, accelerator.device)
    gc.collect()  # now it is of the oldest generation
    del lost
    collections.clear()
    release()
    assert collections == [1, 2]
    assert accelerator.reserved == 0 or accelerator.allocated > 0


def test_collecting_can_be_forbidden_or_forced(accelerator, collections):
    kept = tensor(1, accelerator.device)
    release(collect=False)
    assert collections == []
    release(collect=True)
    assert collections == [2]
    del kept


def test_the_host_gets_its_share_back(accelerator, monkeypatch, collections):
    called = []
    monkeypatch.setattr(cleanup, "trim_host", lambda: called.append("trim") or "malloc_trim")
    monkeypatch.setattr(backend, "empty_host_cache", lambda device: called.append("pinned"))
    assert release().trimmed is None and called == []
    receipt = release(host=True)
    assert called == ["pinned", "trim"]
    assert receipt.trimmed == "malloc_trim"
    assert 2 in collections
    assert "heap trimmed by malloc_trim" in receipt.text()


# -- failures ----------------------------------------------------------------------------------


class Stubborn(Block):
    def _apply(self, fn, recurse=True):
        raise RuntimeError("can't be moved")


def test_one_that_fails_does_not_keep_the_others(accelerator, pipeline, caplog):
    stubborn = Block(1, 0).to(accelerator.device)
    stubborn.__class__ = Stubborn
    pipeline.text_encoder = stubborn
    receipt = release(pipeline)
    assert receipt.errors == ("text_encoder: RuntimeError: can't be moved",)
    assert receipt.remaining == MIB + 4
    assert pipeline.unet.weight.device.type == "cpu"
    assert "failed: text_encoder" in receipt.text()
    assert "still held by what was released: 1.0 MB" in receipt.text()
    assert "could not take text_encoder off the device" in caplog.text


def test_a_device_that_reports_a_failure_is_emptied_all_the_same(accelerator, monkeypatch):
    def lost(device):
        raise RuntimeError("kernel failed")

    tensor(5, accelerator.device)
    monkeypatch.setattr(backend, "synchronize", lost)
    receipt = release()
    assert receipt.errors == (f"{accelerator.device} reports an earlier failure: kernel failed",)
    assert receipt.by_owner[CACHE] >= 5 * MIB


def test_a_cache_that_cannot_be_emptied_is_reported(accelerator, monkeypatch):
    def refuse(device):
        raise RuntimeError("refused")

    monkeypatch.setattr(backend, "empty_cache", refuse)
    assert release().errors == (f"the cache of {accelerator.device} was not emptied: refused",)


def test_an_errors_frames_let_go(accelerator):
    def fail(mb):
        held = tensor(mb, accelerator.device)
        raise ValueError(held.numel())

    def wrap():
        try:
            fail(3)
        except ValueError as error:
            held = tensor(2, accelerator.device)
            raise RuntimeError(held.numel()) from error

    base = accelerator.allocated
    try:
        wrap()
    except RuntimeError as error:
        assert accelerator.allocated == base + 5 * MIB
        release()
        assert accelerator.allocated == base + 5 * MIB
        release(error=error)
        assert accelerator.allocated == base


@pytest.mark.parametrize("target", [3, "unet", [], object()])
def test_what_holds_no_model_is_refused_before_anything_is_done(accelerator, pipeline, target):
    with pytest.raises(TargetError, match=type(target).__name__):
        release(pipeline, target)
    assert pipeline.unet.weight.device == accelerator.device


def test_a_device_that_is_not_there_is_refused(accelerator):
    with pytest.raises(DeviceError):
        release(device=f"{accelerator.device.type}:7")


# -- for readers -------------------------------------------------------------------------------


def test_the_receipt_is_json_and_text(accelerator, pipeline):
    pipeline()
    receipt = release(pipeline)
    values = json.loads(json.dumps(receipt.to_dict()))
    assert values["freed"] == receipt.freed > 7 * MIB
    assert values["by_owner"] == receipt.by_owner
    assert values["freed_host"] == receipt.before.host_rss - receipt.after.host_rss
    text = receipt.text()
    assert text.startswith(f"Released on {accelerator.device} in ")
    assert "    unet: 4.0 MB" in text
    assert receipt.before.host_rss < 64 * GIB
