"""Ten workflows on small models, in API form: what people wire, and Lowtide's nodes in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executed import IMAGE, Graph
from small_nodes import SAMPLING, video_vae

EDGE = 64
"""Pixels of an image's edge."""


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def text_to_image(
    *,
    level: str | None = "none",
    cleanup: str = "always",
    rescue: str = "on",
    family: str = "sd15",
    seed: int = 1,
    text: str = "a lighthouse",
    steps: int = 2,
    batch: int = 1,
) -> Graph:
    """The common workflow: models, prompts, sampler, decode, save; ``level`` None is stock."""
    source = "1" if level is None else "3"
    graph = {
        "1": _node("TestFamily", name=family),
        "4": _node("CLIPTextEncode", text=text, clip=[source, 1]),
        "5": _node("CLIPTextEncode", text="blurry", clip=[source, 1]),
        "6": _node("EmptyLatentImage", width=EDGE, height=EDGE, batch_size=batch),
        "7": _node(
            "KSampler",
            **{**SAMPLING, "seed": seed, "steps": steps},
            model=[source, 0],
            positive=["4", 0],
            negative=["5", 0],
            latent_image=["6", 0],
        ),
        "8": _node("VAEDecode", samples=["7", 0], vae=[source, 2]),
        "9": _node("PreviewImage", images=["8", 0]),
    }
    if level is not None:
        graph["2"] = _node(
            "LowtideMemoryLevelSelector",
            level=level, budget_gb=0.0, cleanup=cleanup, rescue=rescue,
        )  # fmt: skip
        graph["3"] = _node(
            "LowtideOptimizePipeline",
            config=["2", 0], model=["1", 0], clip=["1", 1], vae=["1", 2],
        )  # fmt: skip
    return graph


def lora(**more: Any) -> Graph:
    graph = text_to_image(**more)
    graph["10"] = _node(
        "LoraLoader",
        lora_name="lora-1.safetensors",
        strength_model=0.8, strength_clip=0.7, model=["1", 0], clip=["1", 1],
    )  # fmt: skip
    graph["3"]["inputs"] |= {"model": ["10", 0], "clip": ["10", 1]}
    return graph


def control_net(**more: Any) -> Graph:
    graph = text_to_image(**more)
    graph["10"] = _node("TestSmallControlNet", name="small")
    graph["11"] = _node("EmptyImage", width=EDGE, height=EDGE, batch_size=1, color=255)
    graph["12"] = _node(
        "ControlNetApplyAdvanced",
        positive=["4", 0], negative=["5", 0], control_net=["10", 0], image=["11", 0],
        strength=0.8, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    graph["7"]["inputs"] |= {"positive": ["12", 0], "negative": ["12", 1]}
    return graph


def two_samplers(**more: Any) -> Graph:
    graph = text_to_image(**more)
    graph["10"] = _node(
        "LatentUpscale",
        samples=["7", 0], upscale_method="bilinear", width=96, height=96, crop="disabled",
    )  # fmt: skip
    again = {**graph["7"]["inputs"], "latent_image": ["10", 0], "denoise": 0.5, "seed": 2}
    graph["11"] = _node("KSampler", **again)
    graph["8"]["inputs"]["samples"] = ["11", 0]
    return graph


def upscale(**more: Any) -> Graph:
    graph = text_to_image(**more)
    graph["10"] = _node("UpscaleModelLoader", model_name="small.pth")
    graph["11"] = _node("ImageUpscaleWithModel", upscale_model=["10", 0], image=["8", 0])
    graph["12"] = _node(
        "ImageScale",
        image=["11", 0], upscale_method="lanczos", width=96, height=96, crop="disabled",
    )  # fmt: skip
    graph["9"]["inputs"]["images"] = ["12", 0]
    return graph


def batch(**more: Any) -> Graph:
    graph = text_to_image(**more, batch=3)
    graph["10"] = _node("RepeatLatentBatch", samples=["6", 0], amount=2)
    graph["7"]["inputs"]["latent_image"] = ["10", 0]
    return graph


def image_to_image(**more: Any) -> Graph:
    graph = text_to_image(**more)
    graph["10"] = _node("LoadImage", image=IMAGE)
    graph["6"] = _node("VAEEncode", pixels=["10", 0], vae=["3", 2])
    graph["7"]["inputs"]["denoise"] = 0.6
    return graph


def inpaint(**more: Any) -> Graph:
    graph = image_to_image(**more)
    graph["6"] = _node(
        "VAEEncodeForInpaint", pixels=["10", 0], vae=["3", 2], mask=["10", 1], grow_mask_by=6
    )
    graph["7"]["inputs"]["denoise"] = 1.0
    return graph


def video(level: str = "none", cleanup: str = "always", **more: Any) -> Graph:
    video_vae()  # the file that makes it tries it out
    return {
        "1": _node("TestVideoVAE", name="small"),
        "2": _node(
            "LowtideMemoryLevelSelector",
            level=level, budget_gb=0.0, cleanup=cleanup, rescue="on",
        ),
        "3": _node("LowtideOptimizePipeline", config=["2", 0], vae=["1", 0]),
        "4": _node("TestVideoLatent", frames=3, edge=12),
        "5": _node("VAEDecode", samples=["4", 0], vae=["3", 2]),
        "6": _node("VAEEncode", pixels=["5", 0], vae=["3", 2]),
        "7": _node("VAEDecode", samples=["6", 0], vae=["3", 2]),
        "9": _node("PreviewImage", images=["7", 0]),
    }  # fmt: skip


def diffusers(
    level: str = "balanced", cleanup: str = "always", seed: int = 1, **more: Any
) -> Graph:
    from lowtide.memory.adapters.models_folder import add_root

    add_root(PIPELINES)
    return {
        "1": _node("LowtideLoadDiffusersPipeline", folder=PIPELINE, dtype="auto"),
        "2": _node(
            "LowtideMemoryLevelSelector",
            level=level, budget_gb=0.0, cleanup=cleanup, rescue="on",
        ),
        "3": _node("LowtideOptimizeDiffusersPipeline", config=["2", 0], pipeline=["1", 0]),
        "4": _node(
            "LowtideGenerate",
            pipeline=["3", 0], prompt="a lighthouse", negative="blurry", width=EDGE, height=EDGE,
            steps=2, guidance=5.0, seed=1, batch_size=1,
        ),
        "9": _node("PreviewImage", images=["4", 0]),
    }  # fmt: skip


def subgraph(**more: Any) -> Graph:
    """A node that expands, and ids as the frontend gives to the nodes of a subgraph."""
    graph = text_to_image(**more)
    inputs = graph["7"]["inputs"]
    links = {name: it for name, it in inputs.items() if isinstance(it, list)}
    graph["7"] = _node("TestTwice", vae=["3", 2], **links)
    names = {"4": "10:3", "5": "10:4", "8": "10:8:1"}

    def renamed(value: Any) -> Any:
        return [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value

    return {
        names.get(node, node): _node(
            it["class_type"], **{name: renamed(value) for name, value in it["inputs"].items()}
        )
        for node, it in graph.items()
    }


PIPELINES, PIPELINE = Path(), ""


def pipelines_in(folder: str, name: str) -> None:
    """Where the diffusers workflow finds its pipeline."""
    global PIPELINES, PIPELINE
    PIPELINES, PIPELINE = Path(folder), name


ALL = {
    it.__name__: it
    for it in (
        lora,
        control_net,
        two_samplers,
        upscale,
        batch,
        image_to_image,
        inpaint,
        video,
        diffusers,
        subgraph,
    )
}
