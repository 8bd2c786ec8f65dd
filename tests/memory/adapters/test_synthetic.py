"""Synthetic pipelines: real sizes, the same every time, and images that react."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory.adapters import synthetic
from lowtide.memory.errors import ConfigError, TargetError
from lowtide.memory.units import MIB

TINY = ("tiny-sd15", "tiny-sdxl", "tiny-flux")

# Parameters of the published models.
REAL = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sdxl": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    },
    "flux": {
        "transformer": 11_901_408_320,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "vae": 83_819_683,
    },
}


def _modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}


def _weights(pipe: Any) -> list[tuple[str, torch.Tensor]]:
    return [(f"{n}.{k}", t) for n, m in _modules(pipe).items() for k, t in m.state_dict().items()]


def _small_run(pipe: Any, **more: Any) -> torch.Tensor:
    return synthetic.run(pipe, size=64, steps=2, **more)


@pytest.fixture(scope="module", params=TINY)
def tiny(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, synthetic.build(request.param, "float32")


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_have_the_published_sizes(name: str) -> None:
    pipe = synthetic.build(name, "bfloat16", on_meta=True)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in _modules(pipe).items()}
    assert counts == REAL[name]
    assert {p.device.type for m in _modules(pipe).values() for p in m.parameters()} == {"meta"}
    sizes = synthetic.component_bytes(pipe)
    for component, count in REAL[name].items():
        assert 2 * count <= sizes[component] <= 2 * count + 4096  # and a buffer of positions


def test_sdxl_upcasts_its_vae_as_the_published_one() -> None:
    assert synthetic.build("sdxl", on_meta=True).vae.config.force_upcast
    assert synthetic.build("tiny-sdxl", on_meta=True).vae.config.force_upcast


def test_tiny_pipelines_have_parts_that_levels_can_tell_apart(tiny: tuple[str, Any]) -> None:
    sizes = synthetic.component_bytes(tiny[1])
    assert 50 * MIB < sum(sizes.values()) < 100 * MIB
    assert max(sizes.values()) < 0.6 * sum(sizes.values())


def test_the_same_arguments_give_the_same_weights_and_image(tiny: tuple[str, Any]) -> None:
    name, pipe = tiny
    again = synthetic.build(name, "float32")
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(_weights(pipe), _weights(again), strict=True)
    )
    assert torch.equal(_small_run(pipe), _small_run(again))


def test_another_seed_gives_other_weights() -> None:
    one, other = (synthetic.build("tiny-sd15", seed=seed) for seed in (0, 1))
    assert not torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)


def test_images_use_their_range_and_follow_the_prompt(tiny: tuple[str, Any]) -> None:
    image = _small_run(tiny[1])
    assert image.shape == (1, 3, 64, 64)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert image.std() > 0.1
    saturated = ((image == 0) | (image == 1)).float().mean()
    assert saturated < 0.3
    assert (image - _small_run(tiny[1], prompt="a dog on a hill")).abs().max() > 0.05
    assert (image - _small_run(tiny[1], seed=6)).abs().max() > 0.05


def test_a_lora_changes_the_image_and_goes_without_a_trace(tiny: tuple[str, Any]) -> None:
    pipe = tiny[1]
    before = _small_run(pipe)
    pipe.load_lora_weights(synthetic.lora_state_dict(pipe, rank=2))
    try:
        assert (before - _small_run(pipe)).abs().max() > 0.05
    finally:
        pipe.unload_lora_weights()
    assert torch.equal(before, _small_run(pipe))


def test_loras_have_the_rank_and_seed_asked_for(tiny: tuple[str, Any]) -> None:
    one = synthetic.lora_state_dict(tiny[1], rank=3, seed=0)
    other = synthetic.lora_state_dict(tiny[1], rank=3, seed=1)
    assert {t.shape[0] for k, t in one.items() if k.endswith("lora_A.weight")} == {3}
    assert one.keys() == other.keys()
    assert all(not torch.equal(one[key], other[key]) for key in one)


def test_a_lora_needs_a_denoiser() -> None:
    class Nothing:
        unet = None

    with pytest.raises(TargetError, match="no attention projections"):
        synthetic.lora_state_dict(Nothing())


@pytest.mark.parametrize("name", TINY)
def test_a_written_pipeline_loads_with_the_same_weights(name: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = synthetic.write_pipeline(tmp_path / name, name, seed=3, dtype="float32")
    assert not list(folder.rglob("*.bin"))
    loaded = dict(_weights(DiffusionPipeline.from_pretrained(folder)))
    built = dict(_weights(synthetic.build(name, "float32", seed=3)))
    assert loaded.keys() == built.keys()
    assert all(torch.equal(loaded[key], built[key]) for key in built)


def test_sdxl_small_is_the_pipeline_the_peers_were_measured_on() -> None:
    state = torch.random.get_rng_state()
    pipe = synthetic.build("sdxl-small")
    assert torch.equal(state, torch.random.get_rng_state())
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in _modules(pipe).items()}
    assert counts == {
        "unet": 110_970_628,
        "text_encoder": 6_594_304,
        "text_encoder_2": 21_855_360,
        "vae": 5_252_487,
    }
    # The UNet comes first, and its first layer takes the first numbers after the seed.
    torch.manual_seed(0)
    first = torch.nn.Conv2d(4, 64, 3, padding=1)
    assert torch.equal(pipe.unet.conv_in.weight, first.weight.half())
    assert {p.dtype for m in _modules(pipe).values() for p in m.parameters()} == {torch.float16}


def test_toy_tokenizers_tell_letters_apart() -> None:
    from lowtide.memory.adapters.synthetic.tokenizers import clip_tokenizer, t5_tokenizer

    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        ids = {tuple(tokenizer(word).input_ids) for word in ("cat", "act", "dog", "a cat")}
        assert len(ids) == 4
        long = tokenizer("a" * 2000, truncation=True, padding="max_length")
        assert len(long.input_ids) == tokenizer.model_max_length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sd99"}, "choose tiny-sd15"),
        ({"name": "tiny-sd15", "dtype": "int3"}, "choose float16"),
        ({"name": "sdxl-small", "on_meta": True}, "on_meta=False"),
    ],
)
def test_what_cannot_be_built_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthetic.build(**arguments)
