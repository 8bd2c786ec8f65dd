"""Plans with ComfyUI's own classes, in a process of each ComfyUI found."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lowtide.memory.child import command
from lowtide.memory.planner.header import read_header
from lowtide.memory.stores import ENVIRONMENT
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.checkpoints import checkpoint
from lowtide.tests.hosts.comfyui import Installation, survey

pytestmark = [pytest.mark.host, pytest.mark.slow]

FOUND = survey()[0]
LEVELS = ("none", "balanced", "aggressive", "ultra")


def plan(installation: Installation, home: Path, *arguments: str) -> dict[str, Any]:
    line = command("bench.cli", "plan", *arguments, "--comfyui", str(installation.root), "--json")
    env = {**os.environ, ENVIRONMENT: str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.long
@pytest.mark.parametrize("installation", FOUND, ids=lambda found: found.version)
def test_a_checkpoint_and_a_graph_that_loads_it(installation: Installation, tmp_path: Path) -> None:
    made = checkpoint(installation, "small").file
    held = read_header(made).nbytes
    whole = plan(installation, tmp_path, "--model", str(made), "--size", "256", "--steps", "3")
    levels = {name: whole["levels"][name] for name in LEVELS}
    assert whole["engine"] == "comfyui"
    assert set(levels["none"]["stages"]) == {"encode", "denoise", "decode"}
    # Everything lies there at level none; positions of tokens and the like may be left out.
    assert 0.97 * held < levels["none"]["peak_allocated_bytes"] < 1.7 * held
    peaks = [levels[name]["peak_allocated_bytes"] for name in LEVELS]
    assert peaks == sorted(peaks, reverse=True)
    assert levels["none"]["moved_bytes"] < 0.01 * held  # prompts and latents, no weights
    # From then on each model comes for its turn, the text encoder for both prompts.
    assert 0.97 * held < levels["balanced"]["moved_bytes"] < 2.2 * held

    graph = tmp_path / "graph.json"
    nodes = graphs.native(str(made), "ultra")
    nodes[graphs.node_of(nodes, "EmptyLatentImage")]["inputs"] |= {"width": 256, "height": 256}
    nodes[graphs.node_of(nodes, "KSampler")]["inputs"] |= {"steps": 3, "cfg": 7.0}
    graph.write_text(json.dumps(nodes))
    asked = plan(installation, tmp_path, "--model", str(graph))
    assert asked["level"] == "ultra"
    assert asked["stages"] == levels["ultra"]["stages"]
    larger = plan(installation, tmp_path, "--model", str(graph), "--size", "512", "--steps", "9")
    assert (larger["width"], larger["height"], larger["steps"]) == (512, 512, 9)
    assert larger["levels"]["none"]["peak_allocated_bytes"] > peaks[0]
    assert not list(tmp_path.glob("traces/*.part"))

    budget = peaks[0] * 0.5
    tight = plan(installation, tmp_path, "--model", str(graph), "--budget-gb", str(budget / 2**30))
    assert tight["plan"]["fits"]
    assert tight["peak_allocated_bytes"] * 1.03 <= budget
    assert set(tight["plan"]["choices"]) == {"clip", "model", "vae"}

    assert tight["largest_batch"] is None, "one image was asked for"
    sizes = ("--size", "256", "--steps", "3", "--batch", "6")
    within = ("--budget-gb", str(budget / 2**30))
    roomy = plan(installation, tmp_path, "--model", str(made), *sizes, *within)
    none = plan(
        installation, tmp_path, "--model", str(graph), "--batch", "6", "--budget-gb", "0.001"
    )
    assert roomy["largest_batch"] >= 1 and none["largest_batch"] == 0
    assert roomy["margin"] == 0.03 and roomy["margin_source"]


@pytest.mark.parametrize("installation", FOUND, ids=lambda found: found.version)
def test_a_graph_is_planned_in_the_type_its_loader_asks_for_and_says_what_it_leaves_out(
    installation: Installation, tmp_path: Path
) -> None:
    made = checkpoint(installation, "small").file
    unet = tmp_path / "unet.safetensors"
    raw = made.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    prefix = "model.diffusion_model."
    kept = {name.removeprefix(prefix): it for name, it in entries.items() if prefix in name}
    text = json.dumps(kept).encode()
    unet.write_bytes(len(text).to_bytes(8, "little") + text)

    def asked(kind: str) -> dict[str, Any]:
        nodes = graphs.stock(str(made), 256, 3)
        loader = {"unet_name": str(unet), "weight_dtype": kind}
        lora = {"model": ["30", 0], "lora_name": "x.safetensors"}
        control = {"positive": ["2", 0], "negative": ["3", 0], "control_net": ["32", 0]}
        for node, name, inputs in (
            ("30", "UNETLoader", loader),
            ("31", "LoraLoaderModelOnly", lora),
            ("32", "ControlNetLoader", {"control_net_name": "c.safetensors"}),
            ("33", "ControlNetApplyAdvanced", control),
        ):
            nodes[node] = {"class_type": name, "inputs": inputs}
        nodes["5"]["inputs"] |= {"model": ["31", 0], "positive": ["33", 0]}
        graph = tmp_path / "graph.json"
        graph.write_text(json.dumps(nodes))
        return plan(installation, tmp_path, "--model", str(graph))

    weights = read_header(unet).nbytes
    plain, coded = asked("default"), asked("fp8_e4m3fn")
    saved, one = (
        plain["levels"][level]["stages"]["denoise"]["peak_allocated_bytes"]
        - coded["levels"][level]["stages"]["denoise"]["peak_allocated_bytes"]
        for level in ("none", "aggressive")
    )
    assert 0.35 * weights < saved < 0.55 * weights and one >= 0
    notes = "\n".join(plain["notes"])
    assert "LoRAs are not counted (x.safetensors, of unknown size)" in notes
    assert "ControlNets are not counted (c.safetensors" in notes
    assert "KSampler 5, for its positive prompt comes from ControlNetApplyAdvanced" in notes
