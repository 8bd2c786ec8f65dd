"""Compile the C++ core once per torch version and flavour, and load it.

The library is cached outside the tree, under a key of the sources, the versions of torch and Python
and the flavour, so a checkout stays clean and another torch never meets a stale library.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parent / "csrc"
FLAVOURS = ("npu", "cuda")
CXX_FLAGS = ["-O1", "-g0", "-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare"]


def cache_dir() -> Path:
    """Where compiled cores live: $LOWTIDE_SIM_CACHE, else the user's cache folder."""
    override = os.environ.get("LOWTIDE_SIM_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowtide-tests"


def sources_of(flavour: str) -> list[Path]:
    """The C++ files of a flavour: the shared ones and its own runtime."""
    other = {"npu": "runtime_cuda.cpp", "cuda": "runtime_npu.cpp"}[flavour]
    return [source for source in sorted(SOURCES.glob("*.cpp")) if source.name != other]


def cache_key(flavour: str) -> str:
    import torch

    digest = hashlib.sha256()
    for part in (torch.__version__, sys.implementation.cache_tag, flavour, *CXX_FLAGS):
        digest.update(part.encode() + b"\0")
    for source in (*sorted(SOURCES.glob("*.h")), *sources_of(flavour)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def load_core(flavour: str) -> ModuleType:
    """The compiled core, built when missing. One per process: a second flavour is an error."""
    if flavour not in FLAVOURS:
        raise ValueError(f"unknown flavour {flavour!r}: choose one of {', '.join(FLAVOURS)}")
    # The checkout can be imported under several package names in one process; the compiled
    # core must not, as loading it twice would register its kernels twice.
    for other in FLAVOURS:
        loaded = sys.modules.get(_module_name(other))
        if loaded is not None:
            if other != flavour:
                raise RuntimeError(
                    f"the {other} flavour is active in this process; start another for {flavour}"
                )
            return loaded
    library = cache_dir() / f"{flavour}-{cache_key(flavour)}" / f"{_module_name(flavour)}.so"
    if not library.exists():
        with _lock(library.parent.with_suffix(".lock")):
            if not library.exists():
                return _compile(flavour, library)
    return _load(flavour, library)


def _module_name(flavour: str) -> str:
    return f"lowtide_sim_{flavour}"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel drops it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(flavour: str, library: Path) -> ModuleType:
    from torch.utils import cpp_extension

    flags = [*CXX_FLAGS, f"-DLOWTIDE_SIM_{flavour.upper()}=1"]
    started = time.monotonic()
    # A build directory of its own each time: torch's own lock file would block forever after a
    # killed build.
    with tempfile.TemporaryDirectory(dir=library.parent.parent, prefix="build-") as work:
        # One translation unit: torch's headers take most of the compiler's time.
        unit = Path(work) / "core.cpp"
        unit.write_text("".join(f'#include "{source}"\n' for source in sources_of(flavour)))
        with _ninja_on_path():
            module = cpp_extension.load(
                _module_name(flavour),
                [str(unit)],
                extra_cflags=flags,
                build_directory=work,
                with_cuda=False,
            )
        library.parent.mkdir(exist_ok=True)
        shutil.move(str(Path(work) / library.name), str(library))
    seconds = time.monotonic() - started
    print(f"simulated accelerator: {flavour} core compiled in {seconds:.0f} s", file=sys.stderr)
    sys.modules[_module_name(flavour)] = module
    return module


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """ninja from the interpreter's environment, where it is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _load(flavour: str, library: Path) -> ModuleType:
    import torch  # noqa: F401  (the library links against torch's)

    name = _module_name(flavour)
    spec = importlib.util.spec_from_file_location(name, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {library}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
