"""One running ComfyUI: boots it on a chosen device, queues graphs, reads figures, stops it.

Everything it writes goes to a base directory of its own; the installation is only read. The HTTP
side uses the standard library, so that the tests' interpreter needs nothing of ComfyUI's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from .comfyui import Installation
from .finished import HostError, Refused, Run

PACK = Path(__file__).resolve().parents[2]
SIMULATOR_SITE = PACK / "tests" / "accelerator" / "site"
FOLDERS = ("models/checkpoints", "models/loras", "models/diffusers", "input", "output", "temp")

Graph = dict[str, dict[str, Any]]
Figures = dict[str, Any]


class Server:
    """A ComfyUI process. ``device`` is "cpu", "npu" or "cuda" (the last two simulated).

    ``profile``: whether its device may be measured between prompts ("on", "off"): tests count what
    is copied.
    """

    def __init__(
        self,
        installation: Installation,
        device: str,
        base: Path,
        *,
        folder: str = "lowtide",
        capacity: str = "4G",
        arguments: tuple[str, ...] = (),
        profile: str = "off",
    ) -> None:
        self.installation = installation
        self.device = device
        self.base = base
        self.folder = folder
        self.capacity = capacity
        self.arguments = arguments
        self.profile = profile
        self.log_path = base / "comfyui.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    # -- life -----------------------------------------------------------------------------------
    def start(self, timeout: float = 480.0) -> None:
        """Returns once the server answers; raises HostError with the log's end otherwise.

        Started again after ``stop``, it listens where it did before.
        The time allows for compiling the simulated accelerator, which the first boot may do.
        """
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        nodes = self.base / "custom_nodes"
        nodes.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).with_name("probe_node.py"), nodes / "lowtide_test_probe.py")
        if not (nodes / self.folder).exists():
            (nodes / self.folder).symlink_to(PACK, target_is_directory=True)
        if not self._port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.installation.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_for_answer(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        command = [str(self.installation.python), "main.py", "--port", str(self._port)]
        command += ["--base-directory", str(self.base), "--disable-auto-launch"]
        # The default database lies in the installation, which tests must not write to.
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        if self.device == "cpu":
            command.append("--cpu")
        return [*command, *self.arguments]

    def _environment(self) -> dict[str, str]:
        own = ("PYTHONPATH", "VIRTUAL_ENV", "LOWTIDE_SIM", "LOWTIDE_SIM_CAPACITY", "LOWTIDE_HOME")
        environment = {k: v for k, v in os.environ.items() if k not in own}
        environment.update(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")
        environment["LOWTIDE_PROFILE"] = self.profile
        if self.device != "cpu":
            environment.update(
                PYTHONPATH=str(SIMULATOR_SITE),
                LOWTIDE_SIM=self.device,
                LOWTIDE_SIM_CAPACITY=self.capacity,
            )
            # The accelerator may have to be compiled by this interpreter: ninja is in either venv.
            tools = [self.installation.python.parent, Path(sys.executable).parent]
            environment["PATH"] = os.pathsep.join([*map(str, tools), environment.get("PATH", "")])
        return environment

    def _wait_for_answer(self, deadline: float) -> None:
        while not self._answers():
            self._check_alive()
            if time.monotonic() > deadline:
                raise HostError(f"no answer from ComfyUI in time\n{self.log()[-4000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def _check_alive(self) -> None:
        code = None if self._process is None else self._process.poll()
        if self._process is None or code is not None:
            raise HostError(f"ComfyUI ended with code {code}\n{self.log()[-4000:]}")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ends the process, by force after 10 s; safe to call at any time."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def log(self) -> str:
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # -- HTTP -----------------------------------------------------------------------------------
    def fetch(
        self,
        path: str,
        data: object = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """The body of an answer; raises urllib.error.HTTPError on a refusal."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Content-Type": "application/json"} if headers is None else headers,
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def post(self, path: str, data: object) -> Any:
        body = self.fetch(path, data, method="POST")
        return json.loads(body) if body else None

    # -- work -----------------------------------------------------------------------------------
    def submit(self, graph: Graph) -> str:
        """Queues a graph in API format and returns its prompt id; raises Refused."""
        try:
            return self.post("/prompt", {"prompt": graph})["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise Refused(refusal.read().decode()) from None

    def finish(self, prompt_id: str, timeout: float = 120.0) -> Run:
        """Waits until a prompt is over and the worker sleeps again."""
        deadline = time.monotonic() + timeout
        while True:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None and self.counters()["idle"]:
                return Run(prompt_id, entry["status"], entry["outputs"])
            self._check_alive()
            if time.monotonic() > deadline:
                raise HostError(f"prompt {prompt_id} was not over after {timeout} s")
            time.sleep(0.05)

    def queue(self, graph: Graph, timeout: float = 120.0) -> Run:
        """Runs a graph to its end, good or bad."""
        return self.finish(self.submit(graph), timeout)

    def wait_running(self, node_id: str, steps: int = 0, timeout: float = 60.0) -> None:
        """Returns once a node runs and has done ``steps`` of its progress bar."""
        deadline = time.monotonic() + timeout
        while True:
            state = self.counters()["progress"].get(node_id)
            if state is not None and state[0] >= steps:
                return
            if time.monotonic() > deadline:
                raise HostError(f"node {node_id} was not running after {timeout} s")
            time.sleep(0.02)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self, timeout: float = 30.0, *, results: bool = True) -> Figures:
        """Unloads all models, drops cached ``results``, and returns the figures after it."""
        deadline, again = time.monotonic() + timeout, 0.0
        while not again or not (figures := self.counters())["idle"]:
            self._check_alive()
            if time.monotonic() >= again:
                # ComfyUI hears of it at once only if it waits for a prompt: while it collects
                # garbage after one, it is not woken, and looks again after the next prompt.
                self.post("/free", {"unload_models": True, "free_memory": results})
                again = time.monotonic() + 3.0
            if time.monotonic() > deadline:
                raise HostError(f"/free was not done after {timeout} s")
            time.sleep(0.02)
        return figures

    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def counters(self) -> Figures:
        """Bytes allocated, reserved, their peaks, traffic; models held; progress; idle."""
        return self.get("/lowtide-test/counters")

    def reset_counters(self) -> Figures:
        """Restarts peaks and traffic; returns the figures from just before."""
        return self.post("/lowtide-test/counters", {})

    def images(self, run: Run) -> np.ndarray:
        """All images of a run in node order, uint8, shape (count, height, width, 3)."""
        pixels: list[np.ndarray] = []
        for node_id in sorted(run.outputs, key=lambda it: (len(it), it)):
            for entry in run.outputs[node_id].get("images", ()):
                folder = self.base / entry["type"] / entry["subfolder"]
                with Image.open(folder / entry["filename"]) as image:
                    pixels.append(np.asarray(image.convert("RGB")))
        if not pixels:
            raise AssertionError(f"the run gave no image: {run.error or run.status}")
        return np.stack(pixels)

    def latents(self, run: Run) -> np.ndarray:
        """The latents that the run's one SaveLatent node wrote, float32."""
        (entry,) = (it for out in run.outputs.values() for it in out.get("latents", ()))
        file = self.base / entry["type"] / entry["subfolder"] / entry["filename"]
        return load_file(file)["latent_tensor"]
