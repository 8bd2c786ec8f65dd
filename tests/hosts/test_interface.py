"""What people's saved graphs depend on: node ids, inputs, outputs; and what the UI shows."""

from __future__ import annotations

import urllib.error
import urllib.parse
from typing import Any

import pytest
from lowtide.tests.hosts.server import Server

pytestmark = [pytest.mark.host, pytest.mark.devices("npu")]

LEVELS = ["auto", "auto (by VRAM size)", "none", "balanced", "aggressive", "ultra"]
KINDS = ["auto", "pytorch", "xformers", "sub-quadratic", "split", "sliced"]
# Node -> its inputs in order (a type, or a list of choices; "?" in front: optional), its outputs.
TABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "LowtideMemoryLevelSelector": (
        {
            "level": LEVELS,
            "budget_gb": "FLOAT",
            "cleanup": ["off", "pressure", "always"],
            "?rescue": ["on", "off", "ask"],
        },
        ["LOWTIDE_CONFIG", "STRING"],
    ),
    "LowtideMemorySettings": (
        {
            "config": "LOWTIDE_CONFIG",
            "fp8_storage": ["level", "on", "off"],
            "keep_originals": ["level", "on", "off"],
            "attention": ["level", *KINDS],
            "attention_slice_size": "INT",
            "forward_chunk_size": "INT",
            "vae_tiling": ["level", "on", "off"],
            "vae_tile_mode": ["level", "auto", "exact", "blended"],
            "vae_tile_size": "INT",
            "vae_decode_chunk_size": "INT",
            "?after_load": ["level", "on", "off"],
            "?after_lora": ["level", "on", "off"],
            "?after_step": ["level", "on", "off"],
            "?after_unload": ["level", "on", "off"],
            "?on_exit": ["level", "on", "off"],
            "?cleanup_host": ["level", "on", "off"],
            "?history": ["level", "on", "off"],
            "?step_peaks": ["level", "on", "off"],
        },
        ["LOWTIDE_CONFIG", "STRING"],
    ),
    "LowtideOptimizePipeline": (
        {
            "config": "LOWTIDE_CONFIG",
            "?model": "MODEL",
            "?clip": "CLIP",
            "?vae": "VAE",
            "?control_net": "CONTROL_NET",
        },
        ["MODEL", "CLIP", "VAE", "STRING", "CONTROL_NET"],
    ),
    "LowtideLoadDiffusersPipeline": (
        {"folder": ["tiny-sd15"], "dtype": ["auto", "bfloat16", "float16", "float32"]},
        ["DIFFUSERS_PIPELINE"],
    ),
    "LowtideOptimizeDiffusersPipeline": (
        {"config": "LOWTIDE_CONFIG", "pipeline": "DIFFUSERS_PIPELINE"},
        ["DIFFUSERS_PIPELINE", "STRING"],
    ),
    "LowtideGenerate": (
        {
            "pipeline": "DIFFUSERS_PIPELINE",
            "prompt": "STRING",
            "negative": "STRING",
            "width": "INT",
            "height": "INT",
            "steps": "INT",
            "guidance": "FLOAT",
            "seed": "INT",
            "batch_size": "INT",
        },
        ["IMAGE"],
    ),
    "LowtideFitCheck": (
        {
            "width": "INT",
            "height": "INT",
            "batch_size": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "budget_gb": "FLOAT",
            "if_it_does_not_fit": ["report", "stop"],
            "?config": "LOWTIDE_CONFIG",
            "?model": "MODEL",
            "?clip": "CLIP",
            "?vae": "VAE",
            "?latent": "LATENT",
        },
        ["MODEL", "CLIP", "VAE", "STRING", "STRING", "IMAGE"],
    ),
    "LowtideVRAMMonitor": ({"anything": "*"}, ["*", "STRING", "LOWTIDE_FIGURES"]),
    "LowtideForceCleanup": (
        {"anything": "*", "target": ["vram", "ram", "both"], "?keep": "STRING"},
        ["*", "STRING", "LOWTIDE_FIGURES"],
    ),
}


def choices_or_type(spec: list[Any]) -> Any:
    """The first entry of an input's specification, in its older and its newer form."""
    return spec[1]["options"] if spec[0] == "COMBO" else spec[0]


def described(info: dict[str, Any]) -> dict[str, Any]:
    found = {name: choices_or_type(it) for name, it in info["input"].get("required", {}).items()}
    for name, it in info["input"].get("optional", {}).items():
        found[f"?{name}"] = choices_or_type(it)
    return found


def test_ids_inputs_and_outputs_are_those_of_the_table(server: Server):
    info = server.object_info()
    assert {name for name in info if name.startswith("Lowtide")} == set(TABLE)
    for name, (inputs, outputs) in TABLE.items():
        assert described(info[name]) == inputs, name
        assert list(described(info[name])) == list(inputs), name
        assert info[name]["output"] == outputs, name


def test_defaults_change_nothing_until_someone_asks(server: Server):
    inputs = server.object_info()["LowtideMemoryLevelSelector"]["input"]["required"]
    assert {name: spec[1]["default"] for name, spec in inputs.items()} == {
        "level": "auto",
        "budget_gb": 0.0,
        "cleanup": "pressure",
    }


def test_every_input_and_output_is_explained_and_in_the_category(server: Server):
    for name, info in server.object_info().items():
        if name not in TABLE:
            continue
        assert info["category"] == "Lowtide"
        assert info["display_name"].startswith("Lowtide ")
        assert info["python_module"] == f"custom_nodes.{server.folder}"
        assert len(info["description"]) > 20
        assert len(info["output_tooltips"]) == len(info["output"])
        for kind in ("required", "optional"):
            for entry, spec in info["input"].get(kind, {}).items():
                assert len(spec[1]["tooltip"]) > 10, (name, entry)


def test_help_pages_are_served(server: Server):
    folder = urllib.parse.quote(server.folder)
    for name, (inputs, _) in TABLE.items():
        page = server.fetch(f"/extensions/{folder}/docs/{name}.md").decode()
        assert page.startswith("# Lowtide "), name
        for entry in inputs:
            assert entry.lstrip("?") in page, (name, entry)


def test_the_question_of_a_rescue_is_shown_and_its_answer_taken(server: Server):
    script = f"/extensions/{server.folder}/lowtide.js"
    assert script in server.get("/extensions")
    assert b"lowtide.rescue" in server.fetch(urllib.parse.quote(script))
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post("/lowtide/rescue", {"question": "never put", "yes": True})
    assert refusal.value.code == 404


def test_example_workflows_are_offered_as_templates(server: Server):
    offered = server.get("/workflow_templates")
    assert {"lowtide_native", "lowtide_diffusers", "lowtide_fit_check"} <= set(
        offered[server.folder]
    )


def test_the_boot_log_has_no_complaint_of_ours(server: Server):
    log = server.log()
    assert "IMPORT FAILED" not in log
    # The log names our folder once, in the list of import times.
    for line in log.splitlines():
        if server.folder in line:
            assert "rror" not in line and "annot import" not in line, line
