"""The pack under ComfyUI's own loader: any folder name, quick, quiet, nothing patched."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lowtide.tests.hosts.comfyui import Installation
from lowtide.tests.hosts.server import PACK

pytestmark = pytest.mark.host

FOLDERS = ("lowtide", "Low tide-pack v0.1", "lowtide-0.1.0.rc1", "ComfyUI Lowtide (copy)")
LIMIT_SECONDS = 0.5
NODES = {
    "LowtideFitCheck",
    "LowtideForceCleanup",
    "LowtideGenerate",
    "LowtideLoadDiffusersPipeline",
    "LowtideMemoryLevelSelector",
    "LowtideMemorySettings",
    "LowtideOptimizeDiffusersPipeline",
    "LowtideOptimizePipeline",
    "LowtideVRAMMonitor",
}


BAD = "a bad pack"
BAD_SOURCE = """
import logging, time, execution
from comfy.model_patcher import ModelPatcher
logging.warning("loud")
end = time.process_time() + 0.6
while time.process_time() < end: pass
execution.PromptExecutor.add_message = lambda *a: None
ModelPatcher.lowtide = 1
import accelerate
NODE_CLASS_MAPPINGS = {}
"""


@pytest.fixture(scope="module")
def every_result(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What ``load_pack.py`` says about the pack under each folder name, then about a bad one."""
    base = tmp_path_factory.mktemp(f"load-{installation.version}")
    nodes = base / "custom_nodes"
    (nodes / BAD).mkdir(parents=True)
    (nodes / BAD / "__init__.py").write_text(BAD_SOURCE)
    for folder in FOLDERS:
        (nodes / folder).symlink_to(PACK, target_is_directory=True)
    script = Path(__file__).with_name("load_pack.py")
    command = [str(installation.python), str(script), str(installation.root), str(base)]
    done = subprocess.run(
        [*command, *FOLDERS, BAD],
        cwd=installation.root,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LOWTIDE_SIM")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, f"the loader ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.fixture
def results(every_result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return every_result[:-1]


def test_loads_under_any_folder_name_with_all_its_nodes(results):
    assert [it["folder"] for it in results] == list(FOLDERS)
    assert {it["folder"]: it["loaded"] for it in results} == dict.fromkeys(FOLDERS, True)
    for it in results:
        assert set(it["nodes"]) == NODES, it["folder"]


def test_loads_without_a_log_line_above_info(results):
    assert {it["folder"]: it["warnings"] for it in results} == {name: [] for name in FOLDERS}


def test_loads_quickly_without_the_heavy_libraries(results):
    assert results[0]["seconds"] < LIMIT_SECONDS
    assert [it["heavy"] for it in results] == [[]] * len(FOLDERS)


def test_patches_nothing_at_import(results):
    assert {it["folder"]: it["changed"] for it in results} == {name: [] for name in FOLDERS}


def test_a_patching_slow_noisy_pack_would_be_noticed(every_result):
    result = every_result[-1]
    assert result["folder"] == BAD
    assert result["warnings"] == ["WARNING root: loud"]
    assert result["seconds"] > LIMIT_SECONDS
    assert "accelerate" in result["heavy"]
    assert "execution.PromptExecutor.add_message" in result["changed"]
    assert "comfy.model_patcher.ModelPatcher.lowtide" in result["changed"]
