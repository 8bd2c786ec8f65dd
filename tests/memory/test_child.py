"""Processes of the checkout's own, whatever its folder is called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lowtide.memory import child


def test_a_child_imports_the_checkout_as_lowtide_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "my packs" / "low-tide v0.1"
    (root / "bench").mkdir(parents=True)
    for name in ("__init__.py", "bench/__init__.py"):
        shutil.copy(child.ROOT / name, root / name)
    (root / "bench" / "probe.py").write_text(
        "import sys\n"
        "def main(arguments):\n"
        "    print(__name__, __file__, arguments, '' in sys.path)\n"
        "    return 7\n"
    )
    monkeypatch.setattr(child, "ROOT", root)
    done = subprocess.run(
        child.command("bench.probe", "--name", "two words"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout.split()[0] == "lowtide.bench.probe", done.stderr
    assert str(root / "bench" / "probe.py") in done.stdout
    assert done.stdout.endswith("['--name', 'two words'] False\n")
    assert done.returncode == 7
