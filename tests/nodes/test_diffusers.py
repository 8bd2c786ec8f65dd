"""The diffusers nodes: form, errors, and one whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowtide.memory.adapters.models_folder import ENVIRONMENT
from lowtide.memory.adapters.synthetic import write_pipeline
from lowtide.memory.errors import ConfigError, PipelineLoadError, TargetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.tests.memory.tiny import held
from lowtide.tests.nodes.shape import check_conventions, inputs, node

LOAD, OPTIMIZE, GENERATE = (
    "LowtideLoadDiffusersPipeline",
    "LowtideOptimizeDiffusersPipeline",
    "LowtideGenerate",
)
ASKED: dict[str, Any] = {
    "prompt": "a cat",
    "negative": "bad",
    "width": 64,
    "height": 64,
    "steps": 1,
    "guidance": 5.0,
    "seed": 3,
    "batch_size": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    write_pipeline(folder / "tiny", "tiny-sd15", dtype="float32")
    return folder


@pytest.fixture
def models(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(root))
    return root


def test_the_loaders_form_is_that_of_saved_graphs(models: Path) -> None:
    check_conventions(LOAD, "Lowtide Load Diffusers Pipeline")
    assert inputs(LOAD) == {"folder": ["tiny"], "dtype": ["auto", "bfloat16", "float16", "float32"]}
    assert node(LOAD).RETURN_TYPES == ("DIFFUSERS_PIPELINE",)


def test_the_optimizers_form_is_that_of_saved_graphs() -> None:
    check_conventions(OPTIMIZE, "Lowtide Optimize Diffusers Pipeline")
    assert inputs(OPTIMIZE) == {"config": "LOWTIDE_CONFIG", "pipeline": "DIFFUSERS_PIPELINE"}
    assert node(OPTIMIZE).RETURN_TYPES == ("DIFFUSERS_PIPELINE", "STRING")


def test_the_generators_form_is_that_of_saved_graphs() -> None:
    check_conventions(GENERATE, "Lowtide Generate")
    assert inputs(GENERATE) == {
        "pipeline": "DIFFUSERS_PIPELINE",
        "prompt": "STRING",
        "negative": "STRING",
        "width": "INT",
        "height": "INT",
        "steps": "INT",
        "guidance": "FLOAT",
        "seed": "INT",
        "batch_size": "INT",
    }
    assert next(iter(inputs(GENERATE))) == "pipeline"
    assert node(GENERATE).RETURN_TYPES == ("IMAGE",)
    seed = node(GENERATE).INPUT_TYPES()["required"]["seed"][1]
    assert (seed["max"], seed["control_after_generate"]) == (2**64 - 1, True)


def test_a_graph_loads_optimises_and_generates(accelerator: Any, models: Path) -> None:
    base = held(accelerator)
    (loaded,) = node(LOAD)().run("tiny", "auto")
    optimised, text = node(OPTIMIZE)().run(
        MemoryOptimizationConfig.from_level("aggressive"), loaded
    )
    (images,) = node(GENERATE)().run(optimised, **ASKED)
    assert (images.shape, images.dtype) == ((1, 64, 64, 3), torch.float32)
    assert images.std() > 0.01
    assert text.startswith(f"Level aggressive on {accelerator.device}")
    assert held(accelerator) == base


def test_a_changed_file_loads_the_pipeline_again(models: Path) -> None:
    changed = node(LOAD).IS_CHANGED
    first = changed("tiny", "auto")
    assert first and changed("tiny", "float16") == first
    note = models / "tiny" / "note.txt"
    note.write_text("new")
    assert changed("tiny", "auto") != first
    note.unlink()
    assert changed("../tiny", "auto") == changed("absent", "auto") == ""


def test_a_folder_that_is_not_there_says_where_it_was_sought(models: Path) -> None:
    with pytest.raises(PipelineLoadError, match="there is no folder 'absent'"):
        node(LOAD)().run("absent", "auto")
    with pytest.raises(PipelineLoadError, match="is no name of a folder"):
        node(LOAD)().run("../tiny", "auto")
    with pytest.raises(ConfigError, match="unknown dtype"):
        node(LOAD)().run("tiny", "int4")


@pytest.mark.parametrize("thing", [None, "pipeline", torch.nn.Linear(1, 1)])
def test_what_is_no_pipeline_names_the_node_to_plug_in(thing: Any) -> None:
    config = MemoryOptimizationConfig()
    with pytest.raises(TargetError, match="Lowtide Load Diffusers Pipeline"):
        node(OPTIMIZE)().run(config, thing)
    with pytest.raises(TargetError, match="Lowtide Load Diffusers Pipeline"):
        node(GENERATE)().run(thing, **ASKED)


def test_what_is_no_configuration_names_the_node_to_plug_in(accelerator: Any, models: Path) -> None:
    (loaded,) = node(LOAD)().run("tiny", "float32")
    with pytest.raises(TargetError, match="Lowtide Memory Level Selector"):
        node(OPTIMIZE)().run("balanced", loaded)


@pytest.mark.parametrize("size", [0, 60, -64])
def test_a_size_the_pipeline_cannot_make_names_one_it_can(
    accelerator: Any, models: Path, size: int
) -> None:
    (loaded,) = node(LOAD)().run("tiny", "float32")
    with pytest.raises(ConfigError, match=r"`height` = .* works in steps of 8; give"):
        node(GENERATE)().run(loaded, **{**ASKED, "height": size})
