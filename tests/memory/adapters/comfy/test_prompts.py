"""Whole prompts in real ComfyUI: what they leave, what the timeline says of them, what holds on.

LOWTIDE_TEST_BETWEEN=full takes every level, both devices, both caches and more prompts.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from lowtide.tests.hosts.checkpoints import diffusers_folder
from lowtide.tests.hosts.comfyui import survey
from lowtide.tests.hosts.fixtures import PIPELINE
from lowtide.tests.memory.adapters.comfy.hosted import hosted

LEVELS = ("none", "balanced", "aggressive", "ultra")
WORKFLOWS = (
    "lora",
    "control_net",
    "two_samplers",
    "upscale",
    "batch",
    "image_to_image",
    "inpaint",
    "video",
    "diffusers",
    "subgraph",
)
FULL = os.environ.get("LOWTIDE_TEST_BETWEEN") == "full"
PLACES = ("npu", "cuda") if FULL else ("npu",)
PROMPTS = 212 if FULL else 44
WARM_UP, ROUND = 8, len(LEVELS)
SETTLING = 3
TOLERANCE = 0.02
MIB = 1 << 20

INSTALLATIONS, REFUSED = survey()

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not INSTALLATIONS, reason="; ".join(REFUSED)),
    pytest.mark.parametrize("installation", INSTALLATIONS or [None], ids=str),
    pytest.mark.parametrize("place", PLACES),
]


def ask(installation: Any, place: str, module: str, function: str, **arguments: Any) -> Any:
    """A function of the worker; those that take workflows are told where the pipelines are."""
    if "workflow" in arguments:
        folder = diffusers_folder(PIPELINE)
        arguments |= {"pipelines": str(folder.parent), "pipeline": folder.name}
    return hosted(installation, place, "prompts").ask(module, function, **arguments)


# -- nothing is left ----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", ("CLASSIC", "RAM_PRESSURE") if FULL else ("CLASSIC",))
def test_fifty_prompts_leave_the_device_empty_and_ram_as_it_was(
    installation: Any, place: str, kind: str
):
    if kind not in ask(installation, place, "executed", "kinds"):
        pytest.skip(f"this ComfyUI has no {kind} cache")
    prompts = ask(
        installation, place, "cleaned", "after_prompts",
        count=WARM_UP + PROMPTS, levels=LEVELS, family="sd15", kind=kind,
    )  # fmt: skip
    assert [(it["allocated"], it["reserved"]) for it in prompts] == [(0, 0)] * len(prompts)
    # Of each level apart: FP8 weights are of another size on the host.
    for number, level in enumerate(LEVELS):
        of_level = [it["rss"] for it in prompts[number::ROUND]]
        # The heap's size wavers by some MiB from prompt to prompt; a leak raises its lowest, too.
        baseline, after = max(of_level[: WARM_UP // ROUND]), min(of_level[-SETTLING:])
        assert after <= (1 + TOLERANCE) * baseline, (
            f"{level}: {baseline / MIB:.0f} MiB of RAM after the first prompts, "
            f"{after / MIB:.0f} MiB after {len(prompts)}"
        )


# -- peaks --------------------------------------------------------------------------------------


def _measured() -> list[Any]:
    """Every workflow at one level at least; a level's tiles and strips differ by the workflow."""
    if FULL:
        return [(name, level) for name in WORKFLOWS for level in LEVELS]
    return [*((name, "none") for name in WORKFLOWS), ("lora", "ultra")]


@pytest.mark.parametrize(("workflow", "level"), _measured())
def test_each_nodes_peak_is_the_accelerators_own(
    installation: Any, place: str, workflow: str, level: str
):
    found = ask(installation, place, "peaks", "of", workflow=workflow, level=level)
    assert min(map(len, found["counted"])) >= 5
    assert min(max(peak for peak, _ in it.values()) for it in found["counted"]) > MIB
    # With a pack that resets torch's peaks before each call, and then without.
    assert found["recorded"] == found["counted"]
    assert found["recorded whole"] == found["whole"]
    assert found["left"] == [[0, 0]] * 2, "bytes allocated and reserved after the prompt"
    for one, steps in zip(found["recorded"], found["steps"], strict=True):
        assert all(max(peaks) <= one[node][0] for node, peaks in steps.items())
    if workflow != "video":
        assert found["steps"][0] and found["steps"][1]


def test_a_subgraphs_nodes_are_counted_in_the_node_that_made_them(installation: Any, place: str):
    found = ask(installation, place, "peaks", "of", workflow="subgraph", level="none")
    inner = [node for node, parent in found["parents"].items() if parent == "7"]
    assert len(inner) == 4
    assert "10:8:1" in found["counted"][1]
    peaks = found["recorded"][1]
    assert peaks["7"] == [max(peaks[node][which] for node in inner) for which in (0, 1)]


# -- interrupts ---------------------------------------------------------------------------------


def _stopped() -> list[Any]:
    if FULL:
        return [
            (name, level, cleanup)
            for name in WORKFLOWS
            for level in LEVELS
            for cleanup in ("always", "pressure")
        ]
    return [
        ("control_net", "aggressive", "pressure"),
        ("subgraph", "none", "always"),
    ]


@pytest.mark.parametrize(("workflow", "level", "cleanup"), _stopped())
def test_an_interrupt_anywhere_leaves_nothing(
    installation: Any, place: str, workflow: str, level: str, cleanup: str
):
    stops = ask(
        installation, place, "stopped", "everywhere",
        workflow=workflow, level=level, cleanup=cleanup, within=24 if FULL else 2,
    )  # fmt: skip
    kinds = [stop["stop"][0] for stop in stops]
    assert kinds.count("before") == kinds.count("after") >= 5
    if workflow != "video":
        assert kinds.count("step") >= 2
    for stop in stops:
        where = stop["stop"]
        if cleanup == "always":
            assert stop["left"] == [0, 0], where
            assert stop.get("next", [0, 0]) == [0, 0], where
        assert stop["unloaded"] == 0, where
        # Within the last model's call there may be nobody left who looks at the interrupt.
        assert not stop["finished"] or where[0] == "within", where
        if not stop["finished"]:
            assert stop["said"] == "execution_interrupted", stop["said"]
            assert stop["status"] == "interrupted", where
            assert stop["nodes"][-1][1] == "interrupted", where


# -- leaks of others ----------------------------------------------------------------------------

_LEAKS = {
    "KeepsInGlobal": "leaking_pack.KEPT: ",
    "KeepsInCycle": "leaking_pack.State.tensor: ",
    "KeepsInClosure": "leaking_pack.KeepsInClosure.keep.<locals>.callback: ",
    "KeepsInInstance": "leaking_pack.KeepsInInstance.preview: ",
}


@pytest.mark.parametrize("kind", _LEAKS)
def test_a_tensor_that_another_pack_keeps_is_named_with_its_size(
    installation: Any, place: str, kind: str
):
    found = ask(installation, place, "leaks", "of", kind=kind, mib=3)
    assert found["held"] == 3 * MIB
    lines = [line for line in found["text"].splitlines() if "still held by" in line]
    assert len(lines) == 1, found["text"]
    assert lines[0].endswith(_LEAKS[kind] + "3.0 MB"), lines
    assert found["file"].removesuffix(".py") in lines[0], "the file that holds it"


def test_a_cycle_that_another_pack_drops_is_freed_and_counted(installation: Any, place: str):
    found = ask(installation, place, "leaks", "of", kind="DropsCycle", mib=3)
    assert found["held"] == 0
    assert "unreferenced tensors: 3.0 MB" in found["text"]


# -- what is ours -------------------------------------------------------------------------------

_OF_A_PROMPT = {
    "memory.adapters.comfy.prompt.Prompt",
    "memory.adapters.comfy.spans.Recorder",
    "memory.adapters.comfy.spans._Open",
    "memory.highwater.HighWater",
    "memory.highwater.Sampler",
    "memory.peaks.PeakWindow",
}
_OF_ITS_MODELS = {
    "memory.adapters.comfy.patchers.BudgetedModelPatcher",
    "memory.adapters.comfy.residency.Residency",
    "memory.adapters.comfy.clip.LeavingCLIP",
    "memory.adapters.comfy.vae.TilingVAE",
}
_OF_A_PIPELINE = {
    "memory.optimizer.MemoryOptimizer",
    "memory.handles.LoadedPipeline",
    "memory.strategies.cleanup_moments.CleanupMoments",
}


@pytest.mark.parametrize("stop", (False, True), ids=("done", "interrupted"))
@pytest.mark.parametrize("level", LEVELS if FULL else ("ultra",))
def test_all_of_ours_is_gone_without_a_collection(
    installation: Any, place: str, level: str, stop: bool
):
    found = ask(installation, place, "attached", "of", workflow="lora", level=level, stop=stop)
    assert set(found["seen"]) >= _OF_A_PROMPT | _OF_ITS_MODELS
    assert not _OF_A_PROMPT & set(found["after"]), found["holders"]
    assert found["left"] == {}, found["holders"]
    assert found["untraceable"] == {}


def test_of_a_pipeline_all_is_gone_with_it(installation: Any, place: str):
    # diffusers' hooks refer to the modules they hang on: a pipeline waits for a collection.
    found = ask(
        installation, place, "attached", "of", workflow="diffusers", level="ultra", collect=True
    )
    assert set(found["seen"]) >= _OF_A_PROMPT | _OF_A_PIPELINE
    assert not _OF_A_PROMPT & set(found["after"]), found["holders"]
    assert found["left"] == {}, found["holders"]


@pytest.mark.long
def test_a_cycle_in_any_object_of_ours_is_caught(installation: Any, place: str):
    found = ask(installation, place, "attached", "of", workflow="lora", level="ultra", bind=True)
    missed = set(found["seen"]) - set(found["left"])
    assert missed == set(), "kinds whose cycles the test above could not see"
