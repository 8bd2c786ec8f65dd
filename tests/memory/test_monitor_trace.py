"""A monitor leaves no trace on the pipeline it watched."""

import pytest
import torch
from lowtide.memory.monitor import MemoryMonitor
from lowtide.tests.memory.toys import Pipeline


@pytest.fixture
def pipeline(accelerator):
    return Pipeline().to(accelerator.device)


def state_of(pipeline):
    return {
        name: (
            dict(vars(part)),
            dict(part._forward_pre_hooks),
            dict(part._forward_hooks),
            part.forward,
        )
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_as_it_was(accelerator, pipeline, fails):
    pipeline.vae.decode_tuned = pipeline.vae.decode
    before = state_of(pipeline)
    try:
        with MemoryMonitor(pipeline, release_on_exit=False):
            assert pipeline.vae.decode.__doc__ == "Decode ``times`` times."
            assert state_of(pipeline) != before
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert state_of(pipeline) == before
    assert "decode" not in vars(pipeline.vae)


def test_a_method_set_on_the_instance_is_put_back(accelerator, pipeline):
    def tiled(x):
        return x

    pipeline.vae.decode = tiled
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        assert pipeline.vae.decode(3) == 3
    assert pipeline.vae.decode is tiled
    assert list(found.stages) == ["decoding"]


def test_a_wrapper_put_around_ours_survives_and_ours_rests(accelerator, pipeline):
    with MemoryMonitor(pipeline, release_on_exit=False) as found:
        inner = pipeline.vae.decode

        def outer(x):
            return inner(x)

        pipeline.vae.decode = outer
    assert pipeline.vae.decode is outer
    pipeline()
    assert found.stages == {}


def test_what_a_method_is_given_and_returns_is_unchanged(accelerator, pipeline):
    x = torch.ones(1, device=accelerator.device)
    with torch.no_grad():
        expected = pipeline.vae.decode(x, times=2)
        with MemoryMonitor(pipeline, release_on_exit=False):
            found = pipeline.vae.decode(x, times=2)
    assert torch.equal(found, expected)
