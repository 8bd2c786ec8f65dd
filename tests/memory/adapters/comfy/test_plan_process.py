"""The process that predicts from headers: what it sees, and everything that ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lowtide.memory.adapters.comfy import plan_process
from lowtide.memory.child import ROOT
from lowtide.memory.errors import LowtideError
from lowtide.memory.profile_published import assumed


def question(comfyui: Path) -> dict[str, Any]:
    """One whose ComfyUI is a folder of the test's own."""
    device = {"kernel": "fused", "loader": {}, "profile": assumed("any").to_dict()}
    return {"comfyui": str(comfyui), "precision": {}, "device": device, "parts": {}}


def comfyui(folder: Path, source: str) -> Path:
    """A ComfyUI whose first module does what ``source`` says."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text(source, encoding="utf-8")
    return folder


def until(probe: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLEEPS = "import time\ntime.sleep(300)"


def test_it_sees_no_gpu_and_no_command_line_and_yields_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(sys, "argv", ["main.py", "--lowvram"])
    source = (
        "import os, sys\n"
        "names = ('CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES', 'LOWTIDE_HOME')\n"
        "print('STARTED', [os.environ[it] for it in names], sys.argv, os.nice(0))\n"
        "raise SystemExit(3)\n"
    )
    home = tmp_path / "home"
    with pytest.raises(LowtideError, match=r"failed \(code 3\); ComfyUI's log says why"):
        plan_process.ask(question(comfyui(tmp_path, source)), home, lambda: False)
    said = caplog.text.partition("STARTED ")[2].splitlines()[0]
    assert said == f"['', '', '{home}'] ['-c'] {os.nice(0) + 10}"


def test_what_cannot_be_asked_for_any_more_is_ended(tmp_path: Path) -> None:
    seen: list[int] = []

    def give_up() -> bool:
        seen.extend(plan_process.running())
        return len(seen) > 3

    folder = comfyui(tmp_path, SLEEPS)
    with pytest.raises(plan_process.GivenUp):
        plan_process.ask(question(folder), tmp_path, give_up)
    assert len(set(seen)) == 1 and not psutil.pid_exists(seen[0])
    assert plan_process.running() == []


def test_it_has_a_time_limit(tmp_path: Path) -> None:
    folder = comfyui(tmp_path, SLEEPS)
    started = time.monotonic()
    with pytest.raises(LowtideError, match="not predicted from within 2 seconds"):
        plan_process.ask(question(folder), tmp_path, lambda: False, seconds=2)
    assert time.monotonic() - started < 10 and plan_process.running() == []


def test_an_answer_that_is_none_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for said in ("nothing", "[1]", '{"levels": '):
        line = [sys.executable, "-c", f"print('''{said}'''); raise RuntimeError('at its end')"]
        monkeypatch.setattr(plan_process, "command", lambda _module, line=line: line)
        with pytest.raises(LowtideError, match="ComfyUI's log says why"):
            plan_process.ask({}, tmp_path, lambda: False)
        assert "at its end" in caplog.text
        caplog.clear()
    refused = [sys.executable, "-c", """print('{"refused": "no"}')"""]
    monkeypatch.setattr(plan_process, "command", lambda _module: refused)
    with pytest.raises(LowtideError, match=r"^no$"):
        plan_process.ask({}, tmp_path, lambda: False)
    monkeypatch.setattr(plan_process, "command", lambda _module: ["/nowhere/python"])
    with pytest.raises(LowtideError, match="cannot be started"):
        plan_process.ask({}, tmp_path, lambda: False)


PARENT = """
import sys, threading, time
from pathlib import Path
from lowtide.memory.adapters.comfy import plan_process
from lowtide.tests.memory.adapters.comfy.test_plan_process import question

folder = Path(sys.argv[1])
asked = question(folder)
asking = lambda: plan_process.ask(asked, folder, lambda: False)
threading.Thread(target=asking, daemon=True).start()
while not (folder / "began").exists():
    time.sleep(0.05)
print(plan_process.running()[0], flush=True)
time.sleep(0 if sys.argv[2] == "ends" else 300)
"""


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_it_ends_with_its_parent(tmp_path: Path, how: str) -> None:
    began = f"import pathlib\npathlib.Path({str(tmp_path / 'began')!r}).touch()\n"
    folder = comfyui(tmp_path, began + SLEEPS)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), how],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    try:
        if how == "is killed":
            parent.send_signal(signal.SIGKILL)
        assert parent.wait(20) == (0 if how == "ends" else -signal.SIGKILL)
        until(lambda: gone(child))
    finally:
        if not gone(child):
            os.kill(child, signal.SIGKILL)


def gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
