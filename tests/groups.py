"""Which tests one worker runs one after the other: those that share a costly set-up.

xdist's scheduler sees only the tests' ids; the ones inside ComfyUI have its version and the device
among their parameters.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PLACE = re.compile(r"(?<![a-z])(cpu|npu|cuda)(?![a-z])")
_OWN_PROCESS = {
    "test_beside_core.py": "core",
    "test_inside.py": "inside",
    "test_matrix.py": "held",
    "test_plan_accuracy.py": "plans",
    "test_plan_loaded.py": "plans",
    "test_prompts.py": "prompts",
    "test_sequences.py": "held",
    "test_staying.py": "prompts",
}


def group_of(nodeid: str) -> str:
    """The group of a test: a running ComfyUI on one device, or the test's file."""
    path, _, rest = nodeid.partition("::")
    parameters = rest.partition("[")[2]
    version, place = _VERSION.search(parameters), _PLACE.search(parameters)
    if version is None:
        return path
    process = _OWN_PROCESS.get(path.rpartition("/")[2], "server")
    return f"{process} {version[0]} {place[0] if place else path}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedules whole groups; asked by xdist where it is installed."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)
