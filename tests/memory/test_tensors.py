"""Which tensors an object holds on an accelerator, counted once."""

import torch
from lowtide.memory.tensors import device_bytes, first_device, held_tensors, replace_plain
from lowtide.memory.units import MIB
from lowtide.tests.memory.toys import Pipeline, Scheduler


def tensor(mb, device):
    return torch.zeros(mb * MIB, dtype=torch.uint8, device=device)


def test_weights_buffers_gradients_and_attributes_are_found(accelerator):
    module = torch.nn.Linear(2, 2)
    module.child = torch.nn.BatchNorm1d(2)
    module.weight.grad = torch.ones(2, 2)
    module.cache = {"a": [torch.ones(1), (torch.ones(1),)]}
    assert len(list(held_tensors(module))) == 2 + 1 + 2 + 2 + 3


def test_shared_storages_count_once(accelerator):
    module = torch.nn.Module()
    module.first = torch.nn.Parameter(torch.zeros(MIB // 4, device=accelerator.device))
    module.second = module.first
    module.view = module.first.detach()[10:]
    assert device_bytes(module) == MIB


def test_only_accelerators_count(accelerator):
    module = torch.nn.Linear(4, 4)
    assert device_bytes(module) == 0
    assert first_device(module) is None
    assert device_bytes(torch.nn.Linear(4, 4, device="meta")) == 0
    module.to(accelerator.device)
    assert device_bytes(module) > 0
    assert first_device(module) == accelerator.device


def test_one_device_is_counted_apart(accelerator):
    accelerator(devices=2)
    other = torch.device(accelerator.device.type, 1)
    module = torch.nn.Module()
    module.one = torch.nn.Parameter(torch.zeros(MIB // 4, device=accelerator.device))
    module.two = torch.nn.Parameter(torch.zeros(MIB // 2, device=other))
    assert device_bytes(module, accelerator.device) == MIB
    assert device_bytes(module, other) == 2 * MIB
    assert device_bytes(module) == 3 * MIB
    del module
    accelerator.empty_cache()


def test_a_pipeline_does_not_enter_its_components(accelerator):
    pipeline = Pipeline().to(accelerator.device)
    pipeline.latents = tensor(3, accelerator.device)
    assert device_bytes(pipeline) == 3 * MIB


def test_replacing_keeps_the_containers(accelerator):
    scheduler = Scheduler()
    listed = scheduler.outputs = [tensor(1, accelerator.device), None]
    scheduler.timesteps = tensor(1, accelerator.device)
    scheduler.pair = ("name", tensor(1, accelerator.device))
    untouched = scheduler.__dict__["same"] = (1, "two")
    assert device_bytes(scheduler) == 3 * MIB
    replace_plain(scheduler, lambda found: found.to("cpu"))
    assert device_bytes(scheduler) == 0
    assert scheduler.outputs is listed and listed[1] is None
    assert scheduler.pair[0] == "name" and scheduler.pair[1].device.type == "cpu"
    assert scheduler.same is untouched
