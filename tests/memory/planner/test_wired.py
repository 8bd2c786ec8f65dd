"""What a sampler hangs on: files, sizes, Lowtide's nodes, and why a graph is not judged."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.errors import ConfigError
from lowtide.memory.planner.wired import Beside, Wired, beside, wired
from lowtide.tests.hosts import graphs

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def flux() -> Graph:
    """Files of their own for each part, guidance on the way, no negative guidance."""
    graph = graphs.stock("x.safetensors", size=512)
    graph["1"] = node("UNETLoader", unet_name="f.safetensors", weight_dtype="fp8_e4m3fn")
    graph["8"] = node("DualCLIPLoader", clip_name1="l.sft", clip_name2="t.sft", type="flux")
    graph["9"] = node("VAELoader", vae_name="ae.safetensors")
    graph["10"] = node("FluxGuidance", conditioning=["2", 0], guidance=3.5)
    graph["4"]["class_type"] = "EmptySD3LatentImage"
    for text in ("2", "3"):
        graph[text]["inputs"]["clip"] = ["8", 0]
    graph["5"]["inputs"] |= {"positive": ["10", 0], "cfg": 1.0, "steps": 7}
    graph["6"]["inputs"]["vae"] = ["9", 0]
    return graph


def found(run: Wired) -> dict[str, tuple[str, tuple[str, ...], str]]:
    return {part: (it.folder, it.names, it.type) for part, it in run.parts.items()}


def test_a_checkpoint_is_all_three_parts() -> None:
    run = wired(graphs.stock("x.safetensors", size=192))
    assert run.nodes == {"5": "denoise", "2": "encode", "3": "encode", "6": "decode"}
    every = ("checkpoints", ("x.safetensors",), "stable_diffusion")
    assert found(run) == dict.fromkeys(("model", "clip", "vae"), every)
    assert (run.work.width, run.work.height, run.work.batch, run.work.guided) == (192, 192, 1, True)
    assert run.optimized == frozenset() and run.selector is None and run.left_out == {}


def test_files_of_their_own_and_the_guidance_on_the_way() -> None:
    run = wired(flux())
    assert found(run) == {
        "model": ("diffusion_models", ("f.safetensors",), "fp8_e4m3fn"),
        "clip": ("text_encoders", ("l.sft", "t.sft"), "flux"),
        "vae": ("vae", ("ae.safetensors",), "stable_diffusion"),
    }
    assert not run.work.guided and run.work.steps == 7 and run.uncounted == ()
    graph = flux()
    graph["8"]["inputs"]["device"] = "cpu"
    assert [part for part, it in wired(graph).parts.items() if it.on_host] == ["clip"]


def test_lowtides_nodes_count_where_the_parts_go_through_them() -> None:
    graph = graphs.native("x.safetensors", "aggressive", budget_gb=2.0)
    run = wired(graph)
    assert run.optimized == {"model", "clip", "vae"} and run.settings == ()
    assert run.selector is not None
    assert (run.selector["level"], run.selector["budget_gb"]) == ("aggressive", 2.0)
    optimize = graphs.node_of(graph, "LowtideOptimizePipeline")
    loader = graphs.node_of(graph, "CheckpointLoaderSimple")
    decode, selector = graphs.node_of(graph, "VAEDecode"), run.selector
    graph[decode]["inputs"]["vae"] = [loader, 2]
    assert wired(graph).optimized == {"model", "clip"}
    graph["80"] = node("LowtideMemorySettings", config=graph[optimize]["inputs"]["config"], a="1")
    graph["81"] = node("LowtideMemorySettings", config=["80", 0], a="2")
    graph[optimize]["inputs"]["config"] = ["81", 0]
    run = wired(graph)
    assert [it["a"] for it in run.settings] == ["1", "2"] and run.selector == selector
    # A selector that nothing goes through is not asked.
    alone = graphs.bypassing(graph)
    assert wired(alone | {"99": node("LowtideMemoryLevelSelector", level="ultra")}).selector is None


def test_a_lora_is_passed_and_named() -> None:
    graph = graphs.stock("x.safetensors")
    graph["20"] = node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name="a")
    graph["21"] = node("ModelSamplingSD3", model=["20", 0])
    graph["5"]["inputs"]["model"] = ["21", 0]
    run = wired(graph)
    assert run.uncounted == ("LoraLoader",) and run.nodes["5"] == "denoise"


def test_a_control_net_leaves_out_the_sampler_alone() -> None:
    graph = graphs.stock("x.safetensors")
    graph["20"] = node("ControlNetApply", conditioning=["2", 0], control_net=["21", 0])
    graph["5"]["inputs"]["positive"] = ["20", 0]
    run = wired(graph)
    assert set(run.nodes) == {"2", "3", "6"}
    assert run.left_out["5"] == (
        "its positive prompt comes from ControlNetApply, whose memory is not known here"
    )


def test_what_works_beside_a_sampler_is_named() -> None:
    graph = graphs.stock("x.safetensors")
    assert beside(graph, "5") == Beside((), ())
    graph["20"] = node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0],
                       control_net=["21", 0])  # fmt: skip
    graph["22"] = node("FluxGuidance", conditioning=["20", 0])
    graph["23"] = node("ControlNetApply", conditioning=["22", 0], control_net=["24", 0])
    graph["25"] = node("LoraLoader", model=["26", 0])
    graph["26"] = node("ModelSamplingSD3", model=["25", 0])
    graph["5"]["inputs"] |= {"positive": ["23", 0], "negative": ["20", 1], "model": ["25", 0]}
    found = beside(graph, "5")
    assert set(found.classes) == {"LoraLoader", "ControlNetApply", "ControlNetApplyAdvanced"}
    assert set(found.controls) == {("21", 0), ("24", 0)}


def test_another_vae_or_encoder_than_the_runs_own_is_left_out() -> None:
    graph = graphs.stock("x.safetensors")
    graph["20"] = node("CheckpointLoaderSimple", ckpt_name="y.safetensors")
    graph["21"] = node("CLIPTextEncode", text="a", clip=["20", 1])
    graph["22"] = node("VAEDecode", vae=["20", 2], samples=["5", 0])
    graph["23"] = node("VAEDecode", vae=["1", 2], samples=["99", 0])
    graph["24"] = node("CLIPTextEncode", text="a", clip=["30", 0])
    run = wired(graph)
    assert set(run.nodes) == {"2", "3", "5", "6"}
    assert set(run.left_out) == {"21", "22", "24"}
    graph["30"] = node("CLIPLoaderGGUF")
    assert wired(graph).uncounted == () and "CLIPLoaderGGUF" in wired(graph).left_out["24"]
    assert "another CLIP" in run.left_out["21"] and "comes from nothing" in run.left_out["24"]


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("KSamplerAdvanced", {}, "samples by KSamplerAdvanced"),
        ("KSampler", {"latent_image": ["1", 0]}, "latents come from CheckpointLoaderSimple"),
        ("KSampler", {"latent_image": ["77", 0]}, "latents come from nothing"),
        ("KSampler", {"model": ["40", 0]}, "MODEL comes from UnetLoaderGGUF"),
        ("KSampler", {"model": ["41", 0]}, "MODEL comes from"),
        ("KSampler", {"model": 3}, "MODEL comes from nothing"),
        ("KSampler", {"latent_image": ["42", 0]}, "come from another node"),
        ("KSampler", {"latent_image": ["43", 0]}, "8 pixels cannot be planned"),
        ("KSampler", {"model": ["44", 0]}, "which file its CheckpointLoaderSimple loads"),
    ],
)
def test_what_is_not_known_is_said(kind: str, inputs: dict[str, Any], said: str) -> None:
    graph = graphs.stock("x.safetensors")
    graph["5"]["class_type"] = kind
    graph["5"]["inputs"] |= inputs
    graph["40"] = node("UnetLoaderGGUF", unet_name="x.gguf")
    graph["41"] = node("LoraLoaderModelOnly", model=["41", 0])
    graph["42"] = node("EmptyLatentImage", width=["1", 0], height=64, batch_size=1)
    graph["43"] = node("EmptyLatentImage", width=8, height=64, batch_size=1)
    graph["44"] = node("CheckpointLoaderSimple", ckpt_name=["1", 0])
    with pytest.raises(ConfigError, match=said):
        wired(graph)


def test_no_sampler_and_two_are_refused() -> None:
    graph = graphs.stock("x.safetensors")
    graph["50"] = dict(graph["5"])
    with pytest.raises(ConfigError, match="it has 2 samplers"):
        wired(graph)
    del graph["50"], graph["5"]
    with pytest.raises(ConfigError, match="it has 0 samplers"):
        wired(graph)
    with pytest.raises(ConfigError, match="it has 0 samplers"):
        wired({"1": None, "2": {"class_type": 3}, "3": {"inputs": {}}})  # type: ignore[dict-item]


def test_lowtides_nodes_that_cannot_be_read_are_refused() -> None:
    graph = graphs.native("x.safetensors", "none")
    optimize = graphs.node_of(graph, "LowtideOptimizePipeline")
    selector = graphs.node_of(graph, "LowtideMemoryLevelSelector")
    graph[selector]["inputs"]["level"] = ["1", 0]
    with pytest.raises(ConfigError, match="a widget of its LowtideMemoryLevelSelector comes from"):
        wired(graph)
    del graph[optimize]["inputs"]["config"]
    with pytest.raises(ConfigError, match="has no Memory Level Selector"):
        wired(graph)
