"""Cases: what is asked about a graph's files, of this ComfyUI and its device."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.cli_args
import comfy.model_management as mm
import folder_paths
import torch
from comfy_execution.caching import CacheKeySetID, HierarchicalCache
from lowtide.memory.adapters.comfy import visits
from lowtide.memory.adapters.comfy.overlay import fit, headers
from lowtide.memory.adapters.comfy.overlay.question import Question, question_of
from lowtide.memory.adapters.comfy.plan_precision import Precision
from lowtide.memory.adapters.comfy.plan_traces import loader_here
from lowtide.memory.errors import LowtideError
from lowtide.memory.override import Override

NAME = "of-these-cases.safetensors"
NONE = Override()


def graph(name: str = NAME, **optimized: Any) -> dict[str, Any]:
    made = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": name}),
        "2": ("CLIPTextEncode", {"text": "a", "clip": ["1", 1]}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "5": (
            "KSampler",
            {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["4", 0],
            },
        ),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
    }
    if optimized:
        made["8"] = ("LowtideMemoryLevelSelector", {"cleanup": "off", **optimized})
        made["9"] = ("LowtideOptimizePipeline", {"config": ["8", 0], "model": ["1", 0]})
        made["5"][1]["model"] = ["9", 0]
    return {node: {"class_type": kind, "inputs": given} for node, (kind, given) in made.items()}


@contextmanager
def file() -> Iterator[Path]:
    """A checkpoint with a header and nothing that ComfyUI would know, in a folder of its own."""
    text = json.dumps({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        kept = folder_paths.folder_names_and_paths["checkpoints"]
        folder_paths.add_model_folder_path("checkpoints", folder)
        try:
            yield path
        finally:
            kept[0].remove(folder)


def reason(asked: dict[str, Any]) -> str:
    try:
        question_of(asked, NONE)
    except LowtideError as error:
        return str(error)
    raise AssertionError("it was asked")


def case_the_question_has_all_that_the_answer_depends_on() -> None:
    with file() as path:
        found = question_of(graph(), NONE)
        part = {"kind": "checkpoint", "files": [str(path)], "type": "stable_diffusion"}
        assert found.asked["parts"] == dict.fromkeys(("model", "clip", "vae"), part)
        assert (Path(found.asked["comfyui"]) / "comfy" / "sd.py").is_file()
        assert found.asked["device"]["loader"] == vars(loader_here())
        assert found.asked["device"]["profile"]["workspace_factor"] >= 0
        json.dumps(found.asked)
        assert question_of(graph(), NONE).key == found.key
        os.utime(path, ns=(1, 1))
        later = question_of(graph(), NONE)
        assert later.key != found.key and later.asked == found.asked
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(1, 1))
        assert question_of(graph(), NONE).key != later.key


def case_the_level_is_that_of_the_next_run() -> None:
    with file():

        def levels(forced: Override = NONE, **selector: Any) -> list[Any]:
            found = question_of(graph(**selector), forced)
            return [(it.level.value, it.budget_bytes) for it in found.configs]

        assert levels() == [("none", None)]
        assert levels(Override("ultra", None)) == [("none", None)], "nothing goes through a node"
        assert levels(level="balanced", budget_gb=0) == [("balanced", None)]
        assert levels(Override("ultra", 1.0), level="balanced", budget_gb=0) == [("ultra", 1 << 30)]
        every = [(it, None) for it in ("none", "balanced", "aggressive", "ultra")]
        assert levels(level="auto", budget_gb=0) == every
        assert question_of(graph(level="ultra", budget_gb=0), NONE).asked["optimized"] == ["model"]
        assert "unknown level" in reason(graph(level="huge", budget_gb=0))
        assert "is more than" in reason(graph(level="none", budget_gb=900.0))
        asked = graph(level="none", budget_gb=0)
        settings = {"config": ["8", 0], "fp8_storage": "on"}
        asked["7"] = {"class_type": "LowtideMemorySettings", "inputs": settings}
        asked["9"]["inputs"]["config"] = ["7", 0]
        assert question_of(asked, NONE).configs[0].fp8_storage
        settings["fp8_storage"] = "perhaps"
        assert "`fp8_storage` is 'perhaps'" in reason(asked)


def case_what_cannot_be_read_is_said_without_its_folder() -> None:
    with file() as path:
        assert "it loads no.safetensors, which is not in" in reason(graph("no.safetensors"))
        assert "is not in ComfyUI's checkpoints" in reason(graph(f"../../{path}"))
        old = path.with_suffix(".ckpt")
        old.touch()
        assert "only safetensors have a header" in reason(graph(old.name))
        asked = graph()
        asked["3"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}}
        asked["6"]["inputs"]["vae"] = ["3", 0]
        found = question_of(asked, NONE)
        assert set(found.asked["parts"]) == {"model", "clip"}
        assert "taesd" in found.left_out["decode"]


def case_what_computes_on_the_host_takes_nothing() -> None:
    with file(), mock.patch.object(mm, "text_encoder_device", lambda: torch.device("cpu")):
        found = question_of(graph(), NONE)
        assert found.asked["on_host"] == ["clip"] and set(found.left_out) == {"encode"}


def case_types_are_those_of_this_device() -> None:
    asked: list[tuple[Any, ...]] = []

    def should(device: Any, prioritize_performance: bool, manual_cast: bool) -> bool:
        asked.append((device, prioritize_performance, manual_cast))
        return prioritize_performance and not manual_cast

    with (
        mock.patch.object(mm, "should_use_fp16", should),
        mock.patch.object(comfy.cli_args.args, "fp32_vae", True),
    ):
        found = Precision.here()
    assert {it[0] for it in asked} == {mm.get_torch_device()}
    assert found.fp16 == (False, False, True, False) and "fp32_vae" in found.flags
    again = Precision.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    says = again.answers()["should_use_fp16"]
    assert says(torch.device("meta"), model_params=7) and not says(None, 0, False)
    assert not says(manual_cast=True)
    args = mock.Mock(fp32_vae=False)
    again.set_flags(args)
    assert args.fp32_vae is True


def case_a_check_counts_what_is_pending_and_then_has_its_figures() -> None:
    looked: list[Question] = []
    at = {"alone": 5, "first": 7, "whole": 9, "weights": 3, "streamed": 0, "seconds": 1.0}
    stages = dict.fromkeys(("encode", "denoise", "decode"), at)
    left = {"vae": "/some/folder/x: the VAE is broken"}
    said: list[Any] = [headers._PENDING]

    def look(question: Question) -> Any:
        looked.append(question)
        return said[0]

    with file(), mock.patch.object(headers.predictions, "look", look):
        found = fit.check(graph())
        assert found["pending"] == 3 and found["fits"] is None
        assert found["nodes"]["5"]["need"] is None
        assert found["nodes"]["5"]["why"] == headers._PENDING.why
        assert len({id(it) for it in looked}) == 1, "what to ask is found out once a check"
        said[0] = {"levels": [stages], "left_out": left}
        found = fit.check(graph())
        assert found["pending"] == 0
        assert [found["nodes"][it]["need"] for it in "256"] == [7, 7, None]
        assert "the VAE is broken" in found["nodes"]["6"]["why"]
        assert "folder" not in found["nodes"]["6"]["why"]
        assert found["nodes"]["4"]["why"] == fit._UNKNOWN
        # A later source's figure goes before the reason of an earlier one, which stays pending.
        said[0] = headers._PENDING
        fit.SOURCES.append(lambda graph, node, named: (11, "rough"))
        try:
            found = fit.check(graph())
        finally:
            fit.SOURCES.pop()
        assert found["nodes"]["5"]["why"] == "rough" and found["pending"] == 3
        gone = fit.check(graph("no.safetensors"))["nodes"]
        assert all("it loads no.safetensors" in gone[it]["why"] for it in "256")
        assert gone["1"]["why"] == fit._UNKNOWN


def case_a_cache_that_was_emptied_knows_no_outputs() -> None:
    emptied = SimpleNamespace(outputs=HierarchicalCache(CacheKeySetID))
    assert visits.outputs_of(emptied, "1") is None
