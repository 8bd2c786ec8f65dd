"""The device exists, computes what the CPU computes, and gives its memory back."""

import torch


def test_module_on_the_device_equals_the_cpu_and_leaves_nothing(accelerator):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(image)
        found = model.to(accelerator.device)(image.to(accelerator.device)).cpu()
    assert torch.equal(found, expected)
    assert accelerator.allocated > 0
    del model
    accelerator.empty_cache()
    assert (accelerator.allocated, accelerator.reserved) == (0, 0)


def test_a_kernel_only_the_device_fuses_runs_as_the_cpus_composition(accelerator):
    norm = torch.nn.RMSNorm(16)
    hidden = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = norm(hidden)
        found = norm.to(accelerator.device)(hidden.to(accelerator.device))
        assert torch.equal(found.cpu(), expected)
