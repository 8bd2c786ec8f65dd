"""Tests that share a ComfyUI go to one worker."""

import pytest
from lowtide.tests.groups import group_of


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/hosts/test_native.py::test_x[0.3.64-cuda-150]", "server 0.3.64 cuda"),
        ("tests/hosts/test_vae.py::test_y[0.3.64-cuda]", "server 0.3.64 cuda"),
        ("tests/a/test_inside.py::test_inside[0.33.0-float8-npu-case_a]", "inside 0.33.0 npu"),
        ("tests/a/test_matrix.py::test_z[cpu-none-0-flux-0.33.0]", "held 0.33.0 cpu"),
        ("tests/a/test_sequences.py::test_z[cpu-0.33.0]", "held 0.33.0 cpu"),
        (
            "tests/hosts/test_loading.py::test_l[0.3.64]",
            "server 0.3.64 tests/hosts/test_loading.py",
        ),
        ("tests/memory/test_units.py::test_u[npu]", "tests/memory/test_units.py"),
        ("tests/memory/test_units.py::test_u", "tests/memory/test_units.py"),
    ],
)
def test_the_group_of_a_test(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group
