from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.optimizer import MemoryOptimizer
from lowtide.memory.strategies.exact_program import Attention, Block, Layer, program_of
from lowtide.memory.strategies.exact_tiling import ExactTiling, apply, known
from lowtide.tests.memory.strategies.pipes import tiny
from peft import LoraConfig


@pytest.fixture
def vae() -> Any:
    return tiny("tiny-sd15", "float32").vae


def test_every_layer_of_a_decoder_is_a_step(vae: Any) -> None:
    program = program_of(vae.decoder)
    assert program is not None
    found = [type(step) for step in program]
    assert (found[0], found[1], found[2], found[-1]) == (Layer, Block, Attention, Layer)
    steps = [layer for step in program if isinstance(step, Block) for layer in vars(step).values()]
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in vae.decoder.modules())
    layers = [layer for layer in steps if isinstance(layer, Layer)]
    shortcuts = [layer for layer in steps if isinstance(layer, torch.nn.Conv2d)]
    alone = found.count(Layer)
    assert len(layers) + len(shortcuts) + alone == convolutions


def activation(vae: Any) -> None:
    vae.decoder.up_blocks[0].resnets[0].nonlinearity = torch.nn.ReLU()


def circular(vae: Any) -> None:
    vae.encoder.conv_in.padding_mode = "circular"


def seamless(vae: Any) -> None:
    vae.decoder.conv_out._conv_forward = lambda x, weight, bias: x


def forward(vae: Any) -> None:
    vae.decoder.mid_block.forward = lambda x, *_: x


def hook(vae: Any) -> None:
    vae.decoder.mid_block.register_forward_hook(lambda *_: None)


def processor(vae: Any) -> None:
    class Own:
        def __call__(self, attn: Any, x: Any, *_: Any, **__: Any) -> Any:
            return x

    vae.decoder.mid_block.attentions[0].set_processor(Own())


def lora_on_attention(vae: Any) -> None:
    vae.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def lora_on_convolutions(vae: Any) -> None:
    vae.add_adapter(LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False))


CHANGES = (
    activation,
    circular,
    seamless,
    forward,
    hook,
    processor,
    lora_on_attention,
    lora_on_convolutions,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_somebody_else_is_seen(vae: Any, change: Any) -> None:
    assert known(vae)
    change(vae)
    assert not known(vae)


def test_a_change_after_it_was_applied_is_kept_to_and_said(vae: Any, caplog: Any) -> None:
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    outcome: Any = apply(ExactTiling(lambda _h, _w: 64), vae, "vae")
    lora_on_convolutions(vae)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "lowtide"):
        found = vae.decode(z).sample
        outcome.undo()
        assert torch.equal(found, vae.decode(z).sample)
    assert "changed after it was optimised" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"use_stream": False, "group_blocks": 2}])
def test_offloading_by_blocks_leaves_the_vae_exact(accelerator: Any, settings: Any) -> None:
    pipe = tiny("tiny-sdxl", "float32")
    z = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = pipe.vae.decode(z).sample
    config = MemoryOptimizationConfig.from_level(
        "ultra",
        group_offload_type="block_level",
        fp8_storage=False,
        vae_tile_mode="exact",
        vae_tile_size=128,
        **settings,
    )
    with MemoryOptimizer(config, device=accelerator.device) as optimizer, torch.no_grad():
        optimizer.optimize_pipeline(pipe)
        for _ in range(2):
            found = pipe.vae.decode(z.to(accelerator.device)).sample.cpu()
            assert (found - plain).norm() <= 1e-5 * plain.norm()
