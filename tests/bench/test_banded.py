"""The untiled run in bands gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from lowtide.bench import banded as bands
from lowtide.bench.vae import _build, _run, _sample


@pytest.mark.parametrize("work", ["decode", "encode"])
def test_bands_change_nothing_but_rounding(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "ROWS", 24)  # the last band is a shorter one
    vae = _build("small")
    sample = _sample(vae, work, 320)
    plain = _run(vae, work, sample)
    with bands.banded(vae):
        assert any("forward" in vars(module) for module in vae.modules())
        found = _run(vae, work, sample)
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)
    assert float((found - plain).norm() / plain.norm()) < 1e-6


def test_the_model_is_as_before_afterwards() -> None:
    vae = _build("small")
    with pytest.raises(RuntimeError, match="on purpose"), bands.banded(vae):
        raise RuntimeError("on purpose")
    for module in vae.modules():
        assert "forward" not in vars(module)
        assert not isinstance(module, torch.nn.SiLU) or not module.inplace
