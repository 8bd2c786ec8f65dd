"""Lowtide Optimize Pipeline: its form; what it does to models is tested inside ComfyUI."""

from __future__ import annotations

import pytest
from lowtide.memory.errors import LowtideError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.tests.nodes.shape import check_conventions, inputs, node

NAME = "LowtideOptimizePipeline"


def test_inputs_and_outputs_are_those_of_saved_graphs() -> None:
    check_conventions(NAME, "Lowtide Optimize Pipeline")
    assert inputs(NAME) == {"config": "LOWTIDE_CONFIG"}
    optional = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "control_net": "CONTROL_NET"}
    assert inputs(NAME, "optional") == optional
    # New sockets come last: a saved graph counts them.
    assert list(inputs(NAME, "optional")) == list(optional)
    assert node(NAME).RETURN_TYPES == ("MODEL", "CLIP", "VAE", "STRING", "CONTROL_NET")
    assert not hasattr(node(NAME), "OUTPUT_NODE")


def test_outside_comfyui_it_says_what_to_use() -> None:
    with pytest.raises(LowtideError, match="use Lowtide's diffusers nodes"):
        node(NAME)().run(MemoryOptimizationConfig())
