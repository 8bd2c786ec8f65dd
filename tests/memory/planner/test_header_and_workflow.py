"""Files that say what is to be planned: a checkpoint's header, a graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lowtide.memory.errors import ConfigError, PipelineLoadError
from lowtide.memory.planner.header import read_header
from lowtide.memory.planner.workflow import read_graph
from safetensors.torch import save_file

EXAMPLES = Path(__file__).resolve().parents[3] / "example_workflows"


def test_a_header_is_read_without_the_weights(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = {"a": torch.zeros(3, 4, dtype=torch.float16), "b": torch.zeros(2)}
    save_file(weights, file, {"note": "x"})
    with file.open("r+b") as cut:
        cut.truncate(8 + int.from_bytes(file.read_bytes()[:8], "little"))
    header = read_header(file)
    assert header.tensors["a"].shape == (3, 4)
    assert header.nbytes == 24 + 8
    assert header.common_dtype == "F16"
    assert header.metadata == {"note": "x"}


def header_file(tmp_path, entries):
    file, text = tmp_path / "model.safetensors", json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    return file


def tensor(**changes):
    return {"dtype": "F16", "shape": [3], "data_offsets": [0, 6], **changes}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([1, 2], "its header is no object"),
        ({"a": tensor(shape=[-1, 5])}, "a has a negative length"),
        ({"__metadata__": 5, "a": tensor()}, "items"),
        ({"a": {"dtype": "F16", "shape": [3]}}, "has no 'data_offsets'"),
        ({"a": tensor(data_offsets=[0])}, "index out of range"),
        ({"a": 3}, "int"),
    ],
)
def test_a_header_that_says_nonsense_is_named(tmp_path, entries, said):
    with pytest.raises(PipelineLoadError, match=rf"no safetensors file: .*{said}"):
        read_header(header_file(tmp_path, entries))


def test_a_file_that_is_cut_short_says_by_how_much(tmp_path):
    file = header_file(tmp_path, {"a": tensor(), "b": tensor(data_offsets=[6, 2054])})
    header = read_header(file)
    assert header.missing == 2054
    assert header.cut_short("x.sft").startswith("x.sft is cut short by 2.0 KB")
    with file.open("ab") as more:
        more.write(bytes(2054))
    assert read_header(file).missing == 0 and read_header(file).cut_short("x") is None


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 40, b"\x10" + b"\0" * 7 + b"{"])
def test_what_is_no_safetensors_is_named(tmp_path, data):
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(PipelineLoadError, match=r"model\.safetensors is no safetensors file"):
        read_header(file)


@pytest.mark.parametrize("name", ["lowtide_native.json", "lowtide_native_api.json"])
def test_both_formats_of_a_graph_say_the_same(name):
    graph = read_graph(EXAMPLES / name)
    assert graph.checkpoint == "v1-5-pruned-emaonly.safetensors"
    assert (graph.work.width, graph.work.height, graph.work.batch) == (512, 512, 1)
    assert graph.work.steps == 20
    assert graph.work.guided
    assert (graph.level, graph.budget_gb) == ("auto", None)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph_file(tmp_path, *nodes):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({str(number): one for number, one in enumerate(nodes)}))
    return file


def test_a_graph_of_single_loaders(tmp_path):
    graph = read_graph(
        graph_file(
            tmp_path,
            node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
            node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="l.st", type="flux"),
            node("VAELoader", vae_name="ae.safetensors"),
            node("EmptySD3LatentImage", width=832, height=["9", 0], batch_size=3),
            node("KSampler", steps=8, cfg=1.0, seed=["9", 1]),
            node("LowtideMemoryLevelSelector", level="ultra", budget_gb=6.5),
            node("SomethingElse", width=1),
        )
    )
    assert (graph.unet, graph.clips) == ("flux.safetensors", ("t5.safetensors", "l.st"))
    assert (graph.clip_type, graph.vae) == ("flux", "ae.safetensors")
    assert (graph.work.width, graph.work.batch, graph.work.steps) == (832, 3, 8)
    assert not graph.work.guided
    assert (graph.level, graph.budget_gb) == ("ultra", 6.5)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "no loader node"),
        ((node("UNETLoader", unet_name="x"),), "no KSampler node"),
        ((node("UNETLoader", unet_name="x"), node("KSampler")), "no empty latent"),
        ((node("KSampler"), node("KSampler")), "has 2 KSamplers"),
    ],
)
def test_graphs_that_cannot_be_planned_say_why(tmp_path, nodes, message):
    with pytest.raises(ConfigError, match=message):
        read_graph(graph_file(tmp_path, *nodes))


def test_other_json_is_no_graph(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="is no ComfyUI graph"):
        read_graph(file)
