"""Runs a module of this checkout in a fresh process, whatever the checkout's folder is called.

``command("bench.peer_row", ...)`` is the command line of such a process. It imports the checkout
as the package ``lowtide``, as the tests do: ``python -m`` would need a folder of that name. It
sees the user's own packages only if this process does.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_BOOTSTRAP = """
import importlib, importlib.util, sys
root, module, *sys.argv[1:] = sys.argv[1:]
sys.path[:] = [entry for entry in sys.path if entry]  # the caller's folder is none of ours
spec = importlib.util.spec_from_file_location(
    "lowtide", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["lowtide"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
raise SystemExit(importlib.import_module("lowtide." + module).main(sys.argv[1:]))
"""


def command(module: str, *arguments: str) -> list[str]:
    """The command line that calls ``main(arguments)`` of the pack's ``module``."""
    alone = ["-s"] if sys.flags.no_user_site else []
    return [sys.executable, *alone, "-c", _BOOTSTRAP, str(ROOT), module, *arguments]
