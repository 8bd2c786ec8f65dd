"""Two devices: memory of their own, a current device, and no mixing."""

import pytest
import torch

KIB = 1 << 10


def device(accelerator, index):
    return torch.device(accelerator.device.type, index)


def test_each_device_has_its_own_memory(accelerator):
    accelerator(devices=2, capacity="100M")
    tensor = torch.ones(KIB, device=device(accelerator, 1))
    assert tensor.device == device(accelerator, 1)
    assert accelerator.module.device_count() == 2
    assert accelerator.at(0).allocated == 0
    assert accelerator.at(1).allocated == 4 * KIB
    assert accelerator.module.memory_allocated(1) == 4 * KIB
    assert (tensor + 1).device == tensor.device
    del tensor
    assert accelerator.at(1).allocated == 0


def test_the_current_device_takes_what_names_no_index(accelerator):
    accelerator(devices=2)
    with accelerator.module.device(1):
        assert accelerator.module.current_device() == 1
        tensor = torch.ones(4, device=accelerator.device.type)
    assert tensor.device.index == 1
    assert accelerator.module.current_device() == 0


def test_copies_between_devices_are_counted_and_exact(accelerator):
    accelerator(devices=2)
    source = torch.randn(KIB, device=device(accelerator, 0))
    accelerator.reset_counters()
    target = source.to(device(accelerator, 1))
    counters = accelerator.counters()
    assert (counters["p2p"], counters["d2d"], counters["h2d"]) == (4 * KIB, 4 * KIB, 0)
    assert torch.equal(target.cpu(), source.cpu())


def test_running_out_on_one_device_leaves_the_other(accelerator):
    accelerator(devices=2, capacity="100M")
    with accelerator.at(1).limited("1M"), pytest.raises(torch.OutOfMemoryError, match="GPU 1"):
        torch.ones(4, device=device(accelerator, 1))
    assert torch.ones(4, device=device(accelerator, 0)).sum().item() == 4


def test_a_device_that_is_not_there_is_an_error(accelerator):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(4, device=device(accelerator, 1))


def test_a_device_in_use_cannot_go_away(accelerator):
    accelerator(devices=2)
    tensor = torch.ones(4, device=device(accelerator, 1))
    with pytest.raises(RuntimeError, match="still holds memory"):
        accelerator(devices=1)
    del tensor
    accelerator(devices=1)


MIXED = {
    "add": lambda a, b: a + b,
    "mm": lambda a, b: a @ b,
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "linear": lambda a, b: torch.nn.functional.linear(a, b),
    "conv": lambda a, b: torch.nn.functional.conv2d(a[None, None], b[None, None]),
    "layer_norm": lambda a, b: torch.nn.functional.layer_norm(a, (4,), b[0], b[1]),
    "index_put": lambda a, b: a.index_put_((torch.tensor([0]),), b[0]),
    "addmm_out": lambda a, b: torch.mm(a, a, out=b),
    "gather": lambda a, b: a.gather(0, b.long()),
    "index_select": lambda a, b: a.index_select(0, b[0].long()),
    "embedding": lambda a, b: torch.nn.functional.embedding(b.long(), a),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.0),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixing_host_and_device_raises_as_on_cuda(accelerator, name):
    there, here = torch.ones(4, 4, device=accelerator.device), torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="to be on the same device"):
        MIXED[name](there, here)


def test_mixing_in_attention_raises(accelerator):
    there, here = torch.ones(1, 4, 4, device=accelerator.device), torch.ones(1, 4, 4)
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.functional.scaled_dot_product_attention(there, here, here)


@pytest.mark.parametrize("name", ["add", "cat", "mm"])
def test_mixing_two_devices_raises(accelerator, name):
    accelerator(devices=2)
    a, b = (torch.ones(4, 4, device=device(accelerator, index)) for index in range(2))
    with pytest.raises(RuntimeError, match="same device"):
        MIXED[name](a, b)


def test_numbers_and_indices_may_stay_on_the_host(accelerator):
    there = torch.arange(4.0, device=accelerator.device)
    assert (there + torch.tensor(1.0)).sum().item() == 10
    assert there[torch.tensor([1, 2])].tolist() == [1, 2]
    there[torch.tensor([0])] = torch.tensor(7.0)
    assert there[0].item() == 7


def test_device_indices_do_not_index_a_host_tensor(accelerator):
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        torch.arange(4)[torch.tensor([1], device=accelerator.device)]


def test_a_host_generator_is_refused(accelerator):
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(2, device=accelerator.device, generator=torch.Generator("cpu"))


def test_a_device_generator_draws_the_hosts_numbers(accelerator):
    here = torch.randn(8, generator=torch.Generator("cpu").manual_seed(5))
    generator = torch.Generator(accelerator.device).manual_seed(5)
    there = torch.randn(8, generator=generator, device=accelerator.device)
    assert isinstance(generator, torch.Generator)
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize(
    "run",
    [
        lambda x, half: x @ half,
        lambda x, half: torch.bmm(x[None], half[None]),
        lambda x, half: torch.nn.functional.linear(x, half),
        lambda x, half: torch.nn.functional.linear(x, x, half[0]),
        lambda x, half: torch.nn.functional.conv2d(x[None, None], half[None, None]),
        lambda x, half: torch.nn.functional.group_norm(x[None], 2, half[0], half[0]),
        lambda x, half: torch.nn.functional.layer_norm(x, (4,), half[0], half[0]),
    ],
)
def test_mixed_types_raise_as_on_a_gpu(accelerator, run):
    x = torch.randn(4, 4, device=accelerator.device)
    run(x, x)
    with pytest.raises(RuntimeError, match="same dtype"):
        run(x, x.half())
