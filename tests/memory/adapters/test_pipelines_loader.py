"""Loading: what is safe and complete loads in the type asked for, all else is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.pipelines_loader import (
    _variant,
    bytes_wanted,
    fingerprint,
    load_pipeline,
    read_index,
)
from lowtide.memory.adapters.synthetic import build, component_bytes
from lowtide.memory.errors import ConfigError, PipelineLoadError
from lowtide.tests.memory.adapters import folders

CPU, GPU = torch.device("cpu"), torch.device("meta")
TRAP = "raise SystemExit('code of a pipeline was run')\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.good(tmp_path_factory.mktemp("half"), dtype="float16")


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    return folders.copy(good, tmp_path)


def load(folder: Path, dtype: str = "auto", device: torch.device = CPU) -> Any:
    return load_pipeline(folder, dtype, device)


def test_a_good_folder_loads_with_its_weights_on_the_cpu(good: Path) -> None:
    found, written = load(good), build("tiny-sd15", "float32")
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(written, name).state_dict()
        weights = getattr(found, name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
        assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", GPU, torch.float16),
        ("auto", CPU, torch.float32),
        ("float32", GPU, torch.float32),
        ("bfloat16", GPU, torch.bfloat16),
        ("float16", CPU, torch.float16),
    ],
)
def test_auto_is_the_stored_type_and_float32_on_the_cpu(
    half: Path, dtype: str, device: torch.device, expected: torch.dtype
) -> None:
    assert load(half, dtype, device).unet.dtype == expected


def test_weights_made_in_inference_mode_can_be_moved(good: Path) -> None:
    with torch.inference_mode():
        pipe = load(good)
    assert not any(p.is_inference() for p in pipe.unet.parameters())


def test_an_unknown_type_lists_the_choices(good: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of: auto, bfloat16, float16, float32"):
        load(good, "int4")


# -- incomplete --------------------------------------------------------------------------------


def test_a_folder_without_an_index_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(PipelineLoadError, match=r"has no model_index.json"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": []}', "\x00"])
def test_an_index_that_names_no_pipeline_is_refused(spoiled: Path, text: str) -> None:
    (spoiled / "model_index.json").write_text(text)
    with pytest.raises(PipelineLoadError, match=r"not readable|names no pipeline class"):
        read_index(spoiled)


def test_an_index_in_another_encoding_is_refused(spoiled: Path) -> None:
    (spoiled / "model_index.json").write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(PipelineLoadError, match="not readable"):
        load(spoiled)


def test_a_missing_component_is_named(spoiled: Path) -> None:
    (spoiled / "unet").rename(spoiled / "elsewhere")
    with pytest.raises(PipelineLoadError, match="is incomplete: there is no folder 'unet'"):
        load(spoiled)


def test_missing_weights_are_named(spoiled: Path) -> None:
    for path in (spoiled / "vae").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(PipelineLoadError, match=r"'vae' of 'spoiled' has no weights"):
        load(spoiled)


def test_a_missing_configuration_is_said(spoiled: Path) -> None:
    (spoiled / "unet" / "config.json").unlink()
    with pytest.raises(PipelineLoadError, match="could not be loaded as StableDiffusionPipeline"):
        load(spoiled)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0x}"])
def test_a_corrupt_file_of_weights_is_refused(
    spoiled: Path, content: bytes, device: torch.device
) -> None:
    next((spoiled / "unet").glob("*.safetensors")).write_bytes(content)
    with pytest.raises(PipelineLoadError):
        load(spoiled, device=device)


def test_a_file_cut_short_is_refused(spoiled: Path) -> None:
    path = next((spoiled / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(PipelineLoadError, match="could not be loaded"):
        load(spoiled)


# -- unsafe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt"])
def test_pickled_weights_are_refused_unread(spoiled: Path, name: str) -> None:
    for path in (spoiled / "unet").glob("*.safetensors"):
        path.unlink()
    (spoiled / "unet" / name).write_bytes(b"cposix\nsystem\n")
    with pytest.raises(PipelineLoadError, match=f"as {name} only, a format that can run code"):
        load(spoiled)


@pytest.mark.parametrize("name", ["MyPipeline", "pipeline.MyPipeline", "UNet2DModel", 7, "os"])
def test_a_pipeline_class_of_its_own_is_refused(spoiled: Path, name: Any) -> None:
    (spoiled / "pipeline.py").write_text(TRAP)
    folders.change_index(spoiled, _class_name=name)
    with pytest.raises(PipelineLoadError, match=r"which diffusers .* does not have"):
        load(spoiled)


@pytest.mark.parametrize(
    "value",
    [
        ["my_unet", "MyUNet"],
        ["unet", "UNet2DConditionModel"],
        ["os", "system"],
        ["builtins", "eval"],
        ["diffusers.utils", "logging"],
        ["diffusers", "logging"],
        [["diffusers"], "UNet2DConditionModel"],
        ["diffusers", {"a": 1}],
    ],
)
def test_a_component_of_another_library_is_refused(spoiled: Path, value: list[Any]) -> None:
    for name in ("my_unet.py", "unet/unet.py", "unet/my_unet.py"):
        (spoiled / name).write_text(TRAP)
    folders.change_index(spoiled, unet=value)
    with pytest.raises(PipelineLoadError, match=r"component 'unet' .* is never run"):
        load(spoiled)
    assert "my_unet" not in sys.modules


@pytest.mark.parametrize("name", ["../good", "a/b", "..\\good", "..", "."])
def test_a_component_that_leaves_the_folder_is_refused(spoiled: Path, name: str) -> None:
    folders.change_index(spoiled, **{name: ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(PipelineLoadError, match="is never run"):
        load(spoiled)


# -- variants and figures ----------------------------------------------------------------------


def as_variant(folder: Path, variant: str) -> Path:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    return folder


def test_a_variant_loads_where_it_is_all_there_is(spoiled: Path) -> None:
    found = load(as_variant(spoiled, "fp16"))
    expected = build("tiny-sd15", "float32").unet.state_dict()
    assert all(torch.equal(found.unet.state_dict()[key], v) for key, v in expected.items())


def test_a_mix_of_plain_and_variant_weights_loads(spoiled: Path) -> None:
    as_variant(spoiled / "unet", "fp16")
    assert load(spoiled).unet.dtype == torch.float32


def test_a_fingerprint_of_nothing_is_empty() -> None:
    assert fingerprint("no such pipeline") == fingerprint("../x") == ""


def test_the_bytes_wanted_are_all_or_the_largest_part() -> None:
    pipe = build("tiny-sd15", "float32")
    sizes = component_bytes(pipe).values()
    assert bytes_wanted(pipe, "none") == sum(sizes)
    assert bytes_wanted(pipe, "sequential") == max(sizes)


@pytest.mark.parametrize("turn", [1, -1])
def test_of_several_variants_fp16_is_taken_in_any_order(turn: int) -> None:
    files = [f"model.{variant}.safetensors" for variant in ("bf16", "fp16", "non_ema")][::turn]
    assert _variant(files) == "fp16"
    assert _variant([file for file in files if "fp16" not in file]) == "bf16"
    assert _variant([*files, "model.safetensors"]) is None
