"""The frontends the overlay is tested in: each ComfyUI's own, and static files of a newer release.

``$LOWTIDE_FRONTEND`` names the folder of the newest frontend's static files; unset, its wheel is
fetched by pip once and unpacked into the tests' cache folder, never into a checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lowtide.tests.hosts.checkpoints import cache_folder
from lowtide.tests.hosts.comfyui import Installation, survey

NEWEST = "1.58.1"
NODES_2 = [1, 40]
"""The first release whose HTML nodes show badges as they change (1.27 does not)."""

_PACKAGE = "comfyui-frontend-package"


class Missing(RuntimeError):
    """Something that a browser test needs is not on this machine; ``str()`` says what to do."""


@dataclass(frozen=True)
class Frontend:
    """One frontend: its version, the ComfyUI that serves it, its files if they are not its own."""

    version: str
    installation: Installation
    separate: bool = False

    @property
    def has_nodes_2(self) -> bool:
        """Whether it can draw nodes as HTML."""
        return [int(part) for part in re.findall(r"\d+", self.version)][:2] >= NODES_2

    def arguments(self) -> tuple[str, ...]:
        """ComfyUI's start flags; raises Missing."""
        return ("--front-end-root", str(static_files())) if self.separate else ()


def _own_version(found: Installation) -> str | None:
    places = found.root.glob(
        ".venv/lib/python3*/site-packages/comfyui_frontend_package-*.dist-info"
    )
    names = sorted(place.name.split("-")[1].removesuffix(".dist") for place in places)
    return names[-1].removesuffix(".dist-info") if names else None


def frontends() -> list[Frontend]:
    """Each ComfyUI's own frontend, and the newest release on the newest ComfyUI."""
    usable = survey()[0]
    found = [Frontend(_own_version(it) or f"of-{it.version}", it) for it in usable]
    if usable and all(it.version != NEWEST for it in found):
        found.append(Frontend(NEWEST, usable[-1], separate=True))
    return found


def static_files() -> Path:
    """The newest frontend's static files; raises Missing where they cannot be had."""
    named = os.environ.get("LOWTIDE_FRONTEND")
    if named is not None:
        if not (Path(named) / "index.html").is_file():
            raise Missing(f"$LOWTIDE_FRONTEND has no index.html: {named}")
        return Path(named)
    folder = cache_folder() / f"frontend-{NEWEST}"
    static = folder / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        _unpack(_download(), folder)
    return static


def _download() -> Path:
    target = cache_folder() / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(target), f"{_PACKAGE}=={NEWEST}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    wheels = sorted(target.glob(f"comfyui_frontend_package-{NEWEST}-*.whl"))
    if done.returncode or not wheels:
        raise Missing(
            f"frontend {NEWEST} could not be fetched: set LOWTIDE_FRONTEND to its static files"
            f" ({done.stderr.strip()[-300:]})"
        )
    return wheels[-1]


def _unpack(wheel: Path, folder: Path) -> None:
    part = folder.with_suffix(f".{os.getpid()}.part")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(part)
    try:
        part.rename(folder)
    except OSError:  # another worker was faster
        if not folder.is_dir():
            raise


def axe() -> str:
    """The source of axe-core, fetched once by npm into the cache folder; raises Missing."""
    folder = cache_folder() / "axe-core"
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-save", "--prefix", str(folder), "axe-core@4"]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as failure:
            raise Missing(f"axe-core could not be fetched by npm: {failure}") from failure
    return source.read_text(encoding="utf-8")


def chromium() -> str:
    """The browser's executable; raises Missing."""
    named = os.environ.get("LOWTIDE_CHROMIUM")
    for choice in (named,) if named else ("/usr/bin/chromium", "/usr/bin/chromium-browser"):
        if Path(choice).is_file():
            return choice
    raise Missing("no chromium: install it (Debian: chromium), or name one in LOWTIDE_CHROMIUM")
