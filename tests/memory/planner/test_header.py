"""What a checkpoint's header says."""

from __future__ import annotations

import json

import pytest
import torch
from lowtide.memory.errors import PipelineLoadError
from lowtide.memory.planner.header import read_header
from safetensors.torch import save_file


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
