"""The import rules of the house, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = [ROOT / "__init__.py", ROOT / "__main__.py"]
for folder in ("memory", "nodes", "bench"):
    PACK += sorted((ROOT / folder).rglob("*.py"))
HOSTS = {
    "accelerate",
    "comfy",
    "comfy_aimdo",
    "comfy_execution",
    "diffusers",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "peft",
    "server",
    "transformers",
}
TORCH_FREE = ("memory/automatic.py", "memory/levels.py", "memory/units.py", "memory/errors.py")
TORCH_FREE += ("memory/profile.py", "memory/profile_published.py", "memory/stores.py")
TORCH_FREE += (
    "memory/history.py",
    "memory/history_answers.py",
    "memory/history_file.py",
    "memory/history_rows.py",
)
TORCH_FREE += ("memory/corrections.py", "memory/learning.py", "memory/fitting.py")
TORCH_FREE += ("memory/run_key.py", "memory/profiles.py")
TORCH_FREE_IF_THERE = ("memory/plan.py",)
TRACES = ("torch._subclasses", "torch._functorch", "functorch", "torch.utils.flop_counter")
TRACES += ("triton", "sympy")
KNOWN = """
import sys, types, torch
for name, path in (("lowtide", sys.argv[1]), ("lowtide.memory", sys.argv[1] + "/memory")):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
before = set(sys.modules)
from lowtide.memory.adapters.comfy import (
    plan_batches, plan_check, plan_foresight, plan_present, plan_twin
)
print(*(set(sys.modules) - before))
"""
LINES = 300
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_LINES = 320


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """(relative level, module, line) of each import, however deep in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                for alias in node.names:
                    yield node.level, alias.name, node.lineno
            else:
                yield node.level, node.module, node.lineno


def _module_level(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    """Imports that run when the module is imported, ``if TYPE_CHECKING`` blocks left out."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)
        pending.extend(ast.iter_child_nodes(node))


def _host_imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{_name(path)}:{line} imports {module}"
        for level, module, line in _imports(tree)
        if level == 0 and module.split(".")[0] in HOSTS
    ]


@pytest.mark.parametrize("path", PACK, ids=_name)
def test_only_adapters_import_a_host(path: Path) -> None:
    if _name(path).startswith("memory/adapters/"):
        return
    assert _host_imports(path) == []


@pytest.mark.parametrize("path", PACK, ids=_name)
def test_the_pack_imports_itself_relatively(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {"lowtide", "memory", "bench"}
    found = [
        f"{_name(path)}:{line} imports {module} absolutely"
        for level, module, line in _imports(tree)
        if level == 0 and module.split(".")[0] in own
    ]
    assert found == []


@pytest.mark.parametrize("path", [p for p in PACK if _name(p).startswith("nodes/")], ids=_name)
def test_nodes_reach_the_core_through_memory_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        (line, module)
        for level, module, line in _imports(tree)
        if level >= 2 and module.split(".")[0] != "memory"
    ]
    assert found == []


@pytest.mark.parametrize("path", [p for p in PACK if _name(p).startswith("memory/")], ids=_name)
def test_the_core_does_not_know_its_callers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    up = len(path.relative_to(ROOT).parts) - 1
    found = [
        (line, module)
        for level, module, line in _imports(tree)
        if level > up and module.split(".")[0] in {"nodes", "bench", "tests"}
    ]
    assert found == []


def _torch_free() -> list[Path]:
    paths = [ROOT / name for name in TORCH_FREE]
    paths += [ROOT / name for name in TORCH_FREE_IF_THERE if (ROOT / name).exists()]
    paths += sorted((ROOT / "memory" / "planner").rglob("*.py"))
    return paths


@pytest.mark.parametrize("path", _torch_free(), ids=_name)
def test_pure_modules_import_no_torch(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [m for level, m, _ in _module_level(tree) if level == 0 and m.startswith("torch")] == []


@pytest.mark.parametrize("path", PACK, ids=_name)
def test_hosts_load_on_use_not_on_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [m for level, m, _ in _module_level(tree) if level == 0 and m.split(".")[0] in HOSTS]
    assert found == []


def _in_comfyui(path: Path) -> bool:
    return _name(path).startswith(("memory/adapters/comfy/", "nodes/"))


@pytest.mark.parametrize("path", [p for p in PACK if _in_comfyui(p)], ids=_name)
def test_what_records_traces_loads_when_one_is_recorded(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        (line, module)
        for level, module, line in _module_level(tree)
        if (level and module.split(".")[0] == "tracing") or module.startswith(TRACES)
    ]
    assert found == []


def test_a_prediction_by_known_traces_imports_nothing_that_records_them() -> None:
    """It takes up to a second, of the first prompt that has a Fit Check."""
    line = [sys.executable, "-c", KNOWN, str(ROOT)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "lowtide.memory.adapters.comfy.plan_twin" in loaded
    assert [name for name in loaded if name.startswith((*TRACES, "lowtide.memory.tracing"))] == []


@pytest.mark.parametrize("path", PACK, ids=_name)
def test_files_stay_readable_in_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


def test_tests_stay_readable_in_one_go() -> None:
    long = {
        _name(path): count
        for path in TESTS
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > TEST_LINES
    }
    assert long == {}


def test_the_rules_see_a_breach(tmp_path: Path) -> None:
    source = "def f():\n    import comfy.utils\n    from diffusers import x\nimport torch\n"
    tree = ast.parse(source)
    assert {m.split(".")[0] for _, m, _ in _imports(tree)} == {"comfy", "diffusers", "torch"}
    assert [m for _, m, _ in _module_level(tree)] == ["torch"]
