"""A ComfyUI process without a server, to be asked for what is in ``worker/``.

One at a time: it holds three models, and tests are grouped by ComfyUI and device.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from lowtide.tests.hosts.checkpoints import cache_folder, digest
from lowtide.tests.hosts.comfyui import Installation

WORKER = Path(__file__).parent / "worker"
SITE = Path(__file__).resolve().parents[3] / "accelerator" / "site"
FAMILIES = ("sd15", "sdxl", "flux")
CAPACITY = "4G"
LOG_LINES = 40


class Failed(AssertionError):
    """What was asked for raised inside ComfyUI; the message is the traceback there."""


class Hosted:
    """A running ComfyUI process. ``place`` is cpu, npu or cuda (the last two simulated)."""

    def __init__(self, installation: Installation, place: str) -> None:
        self.installation = installation
        self.place = place
        self._log: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115  closed with the process
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            [str(installation.python), str(WORKER / "serve.py"), str(installation.root), place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment(),
            text=True,
        )

    def _environment(self) -> dict[str, str]:
        env = {**os.environ, "LOWTIDE_TEST_SHAPES": str(families(self.installation))}
        env["LOWTIDE_PROFILE"] = "off"  # tests count what is copied
        if self.place != "cpu":
            env |= {"PYTHONPATH": str(SITE), "LOWTIDE_SIM": self.place}
            env["LOWTIDE_SIM_CAPACITY"] = CAPACITY
            # The accelerator may have to be compiled by this interpreter: ninja is in either venv.
            tools = [self.installation.python.parent, Path(sys.executable).parent]
            env["PATH"] = os.pathsep.join([*map(str, tools), env.get("PATH", "")])
        return env

    def ask(self, module: str, function: str, **arguments: Any) -> Any:
        """What ``function`` of ``worker/<module>.py`` returns.

        Raises:
            Failed: it raised, or the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        call = {"module": module, "function": function, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise Failed(f"ComfyUI's process ended with {code}; its log ends:\n{self.log()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def log(self) -> str:
        """The end of what ComfyUI printed."""
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-LOG_LINES:])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            self._process.wait(60)
        self._log.close()


_running: list[tuple[tuple[Installation, str, str], Hosted]] = []


def hosted(installation: Installation, place: str, purpose: str = "cells") -> Hosted:
    """The process for a ComfyUI, a device and a purpose; another one is ended first.

    Tests that wrap functions of ComfyUI share no process with tests that wrap them otherwise.
    """
    key = (installation, place, purpose)
    if _running and _running[0][0] != key:
        close()
    if not _running:
        _running.append((key, Hosted(installation, place)))
    return _running[0][1]


def close() -> None:
    """Ends the process there is."""
    while _running:
        _running.pop()[1].close()


atexit.register(close)


def families(installation: Installation) -> Path:
    """A folder with each family's files; built once and kept in the user's cache folder."""
    sources = (WORKER / "build.py", WORKER / "shapes.py")
    base = cache_folder() / f"families-{digest(*sources)}"
    for name in FAMILIES:
        if not (base / name).exists():
            _build(installation, name, base / name)
    return base


def _build(installation: Installation, name: str, folder: Path) -> None:
    part = folder.with_name(f"{name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    script = WORKER / "build.py"
    done = subprocess.run(
        [str(installation.python), str(script), str(installation.root), name, str(part)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"the {name} files were not built:\n{done.stdout[-4000:]}")
    try:
        part.rename(folder)
    except OSError:
        shutil.rmtree(part)  # another run finished first; its files are as good
