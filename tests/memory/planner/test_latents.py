"""The size of latents by a graph's links: what sets it, and what changes it on the way."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.planner.latents import Size, size_of

EMPTY = {
    "class_type": "EmptyLatentImage",
    "inputs": {"width": 512, "height": 768, "batch_size": 2},
}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def chain(*nodes: dict[str, Any]) -> dict[str, Any]:
    """Each linked to the one before, by the input that is None."""
    graph = {}
    for number, made in enumerate(nodes):
        inputs = {
            name: [str(number - 1), 0] if value is None else value
            for name, value in made["inputs"].items()
        }
        graph[str(number)] = {**made, "inputs": inputs}
    return graph


def found(*nodes: dict[str, Any], **options: Any) -> Size | None:
    return size_of(chain(*nodes), (str(len(nodes) - 1), 0), **options)


SAMPLER = node("KSampler", model=["9", 0], latent_image=None)
PICTURE = node("LoadImage", image="a.png")


def pictures(name: str) -> tuple[int, int] | None:
    return {"a.png": (1021, 641)}.get(name)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ((EMPTY,), Size(512, 768, 2, 1, 4)),
        ((EMPTY, SAMPLER), Size(512, 768, 2)),
        (
            (EMPTY, node("SamplerCustomAdvanced", guider=["9", 0], latent_image=None)),
            Size(512, 768, 2),
        ),
        ((EMPTY, SAMPLER, node("LatentUpscaleBy", samples=None, scale_by=1.5)), Size(768, 1152, 2)),
        (
            (EMPTY, SAMPLER, node("LatentUpscale", samples=None, width=1024, height=0)),
            Size(1024, 1536, 2),
        ),
        (
            (EMPTY, SAMPLER, node("LatentUpscale", samples=None, width=640, height=640)),
            Size(640, 640, 2),
        ),
        ((EMPTY, node("RepeatLatentBatch", samples=None, amount=3)), Size(512, 768, 6, 1, 4)),
        ((EMPTY, node("SetLatentNoiseMask", samples=None)), Size(512, 768, 2, 1, 4)),
        (
            (
                EMPTY,
                SAMPLER,
                node("VAEDecode", samples=None),
                node("ImageScaleBy", image=None, scale_by=2),
                node("VAEEncode", pixels=None),
            ),
            Size(1024, 1536, 2),
        ),
        ((PICTURE, node("VAEEncode", pixels=None)), Size(1016, 640)),
        (
            (
                PICTURE,
                node("ImageScaleToTotalPixels", image=None, megapixels=1.0),
                node("VAEEncode", pixels=None),
            ),
            Size(1288, 808),
        ),
        (
            (node("EmptyHunyuanLatentVideo", width=64, height=32, length=17, batch_size=1),),
            Size(64, 32, 1, 17),
        ),
    ],
)
def test_the_size_is_that_of_the_run(nodes: tuple[Any, ...], expected: Size) -> None:
    assert found(*nodes, image=pictures) == expected


@pytest.mark.parametrize(
    "nodes",
    [
        (node("EmptyLatentImage", width=["7", 0], height=512),),
        (node("EmptyLatentImage", width=0, height=512),),
        (node("LoadImage", image="lost.png"), node("VAEEncode", pixels=None)),
        (PICTURE, node("ImageUpscaleWithModel", image=None), node("VAEEncode", pixels=None)),
        (EMPTY, node("LatentUpscaleBy", samples=None, scale_by=["7", 0])),
        (EMPTY, node("NNLatentUpscale", samples=None, upscale=2.0)),
        (EMPTY, node("LatentUpscaleBy", samples=None, scale_by=1e9)),
        (node("LatentBatch", samples1=["7", 0], samples2=["8", 0]),),
    ],
)
def test_what_the_graph_does_not_tell_is_not_guessed(nodes: tuple[Any, ...]) -> None:
    assert found(*nodes, image=pictures) is None


def test_what_was_made_counts_before_what_is_asked_for() -> None:
    made = {("1", 0): Size(64, 64, 3)}
    larger = node("LatentUpscaleBy", samples=None, scale_by=2)
    assert found(EMPTY, SAMPLER, larger, held=made.get) == Size(128, 128, 3)


def test_a_circle_ends() -> None:
    graph = {"0": node("SetLatentNoiseMask", samples=["0", 0])}
    assert size_of(graph, ("0", 0)) is None
