"""Images that a graph will load: as large as ComfyUI makes them, and what follows for the run."""

from __future__ import annotations

import tempfile

import folder_paths
from comfy_execution.graph import DynamicPrompt
from lowtide.memory.adapters.comfy.images import image_size
from lowtide.memory.adapters.comfy.runs import run_of
from PIL import Image

import nodes

FOLDER = tempfile.TemporaryDirectory(prefix="lowtide-images-")
folder_paths.set_input_directory(FOLDER.name)


def picture(name: str, turned: int | None = None) -> str:
    """A file of 72 by 136 pixels, on its side where ``turned`` says so."""
    exif = Image.Exif()
    if turned is not None:
        exif[0x0112] = turned
    Image.new("RGB", (72, 136)).save(f"{FOLDER.name}/{name}", exif=exif)
    return name


def case_an_image_is_as_large_as_it_is_loaded() -> None:
    for turned in (None, 1, 3, 6, 8):
        name = picture("a.jpg", turned)
        loaded = nodes.LoadImage().load_image(name)[0]
        assert image_size(name) == (loaded.shape[2], loaded.shape[1]), turned
    assert image_size(picture("b.png")) == (72, 136)


def case_what_is_no_image_has_no_size() -> None:
    with open(f"{FOLDER.name}/text.png", "w") as file:
        file.write("no image")
    assert image_size("text.png") is None
    assert image_size("lost.png") is None


def case_a_run_from_an_image_has_its_size() -> None:
    def run(image: str, *scaled: float) -> tuple[int, int] | None:
        graph = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": image}},
            "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
            "4": {
                "class_type": "KSampler",
                "inputs": {"model": ["1", 0], "latent_image": ["3", 0], "steps": 2, "cfg": 1.0},
            },
        }
        last = "4"
        for number, by in enumerate(scaled):
            up, last = f"up{number}", f"sampler{number}"
            graph[up] = {
                "class_type": "LatentUpscaleBy",
                "inputs": {"samples": ["4", 0], "scale_by": by},
            }
            graph[last] = {
                "class_type": "KSampler",
                "inputs": {"model": ["1", 0], "latent_image": [up, 0]},
            }
        found = run_of(DynamicPrompt(graph), "1")
        return None if found is None else (found.work.width, found.work.height)

    assert run(picture("c.png")) == (72, 136)
    assert run(picture("c.png"), 2.0) == (144, 272), "the larger of both counts"
    assert run("lost.png") is None
