"""Real diffusers pipelines under every kind of offload: 0 bytes after release, then runs on."""

import pytest
import torch
from lowtide.memory.adapters.synthetic import build, lora_state_dict, run
from lowtide.memory.cleanup import release
from lowtide.memory.evict import evict

MODES = ("plain", "component", "sequential", "group leaf", "group block", "group leaf stream")


def prepare(mode, device, lora=False):
    pipe = build("tiny-sd15", "float32")
    if lora:
        pipe.load_lora_weights(lora_state_dict(pipe), adapter_name="one")
    if mode == "plain":
        pipe.to(device)
    elif mode == "component":
        pipe.enable_model_cpu_offload(device=device)
    elif mode == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(
            onload_device=device,
            offload_type="block_level" if "block" in mode else "leaf_level",
            num_blocks_per_group=1 if "block" in mode else None,
            use_stream="stream" in mode,
        )
    return pipe


def small_run(pipe):
    return run(pipe, size=64, steps=1)


@pytest.fixture(scope="module")
def expected():
    return small_run(build("tiny-sd15", "float32"))


@pytest.mark.parametrize("mode", MODES)
def test_after_a_run_nothing_is_left_and_the_next_one_is_the_same(accelerator, expected, mode):
    base = accelerator.allocated
    pipe = prepare(mode, accelerator.device)
    assert torch.equal(small_run(pipe), expected)
    receipt = release(pipe)
    assert accelerator.allocated == base
    assert receipt.remaining == 0 and receipt.errors == ()
    assert "unreferenced tensors" not in receipt.by_owner
    if mode == "plain":
        pipe.to(accelerator.device)
    assert torch.equal(small_run(pipe), expected)
    release(pipe)
    assert accelerator.allocated == base


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_run_that_broke_off_leaves_nothing_either(accelerator, expected, mode, part):
    base = accelerator.allocated
    pipe = prepare(mode, accelerator.device)
    linears = [m for m in getattr(pipe, part).modules() if isinstance(m, torch.nn.Linear)]
    inner = linears[len(linears) // 2]

    class Stop(Exception):
        pass

    def stop(module, args, output):
        handle.remove()
        raise Stop

    handle = inner.register_forward_hook(stop)
    with pytest.raises(Stop) as caught:
        small_run(pipe)
    handle.remove()
    receipt = release(pipe, error=caught.value)
    assert accelerator.allocated == base
    assert receipt.remaining == 0 and receipt.errors == ()
    if mode == "plain":
        pipe.to(accelerator.device)
    assert torch.equal(small_run(pipe), expected)
    release(pipe)
    assert accelerator.allocated == base


@pytest.mark.parametrize("mode", MODES)
def test_an_allocation_that_fails_anywhere_leaves_nothing(accelerator, expected, mode):
    base = accelerator.allocated
    pipe = prepare(mode, accelerator.device)
    for n in (1, 40, 160):
        accelerator.fail_allocation(n)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            if mode == "plain":
                pipe.to(accelerator.device)
            small_run(pipe)
        receipt = release(pipe, error=caught.value)
        assert (accelerator.allocated, receipt.remaining) == (base, 0), n
    if mode == "plain":
        pipe.to(accelerator.device)
    assert torch.equal(small_run(pipe), expected)
    release(pipe)


@pytest.mark.parametrize("mode", ["component", "sequential", "group leaf stream"])
def test_loras_leave_with_their_model(accelerator, mode):
    base = accelerator.allocated
    pipe = prepare(mode, accelerator.device, lora=True)
    first = small_run(pipe)
    release(pipe)
    assert accelerator.allocated == base
    assert torch.equal(small_run(pipe), first)
    release(pipe)


def test_sequential_weights_are_not_copied_back(accelerator):
    pipe = prepare("sequential", accelerator.device)
    small_run(pipe)
    accelerator.reset_counters()
    release(pipe)
    assert accelerator.counters()["d2h"] < 8192
    assert pipe.unet.conv_in.weight.device.type == "meta"


def test_what_is_lent_comes_back_only_to_the_hook_it_was_lent_from(accelerator):
    pipe = prepare("sequential", accelerator.device)
    small_run(pipe)
    buffer_owner = pipe.text_encoder.get_submodule(
        next(n for n, _ in pipe.text_encoder.named_buffers()).rpartition(".")[0]
    )
    name, buffer = next(iter(buffer_owner.named_buffers(recurse=False)))
    assert buffer.device == accelerator.device
    release(pipe)
    assert getattr(buffer_owner, name).device.type == "cpu"
    pipe.remove_all_hooks()
    pipe.to("cpu")
    small_run(pipe)
    assert getattr(buffer_owner, name).device.type == "cpu"
    assert not buffer_owner._forward_pre_hooks


def test_evicting_says_how_much_was_there(accelerator):
    module = torch.nn.Linear(512, 512, bias=False).to(accelerator.device)
    assert evict(module) == 512 * 512 * 4
    assert evict(module) == 0
