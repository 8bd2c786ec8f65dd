"""``python -m lowtide history``: what was learnt here, to see and to delete."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..memory import learning, stores
from ..memory.errors import ConfigError
from ..memory.history import History, describe
from ..memory.history_file import NAME


def add_to(commands: Any) -> None:
    """Add the command to a command line's others."""
    told = "what past runs needed on this machine, and forgetting it"
    command = commands.add_parser("history", help=told)
    command.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where it lies, for example ComfyUI/user/__lowtide (default: as outside ComfyUI)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--reset", action="store_true", help="delete every row")
    command.set_defaults(command=_run)


@contextmanager
def left_out() -> Iterator[None]:
    """Keep nothing meanwhile, here and in processes begun: benches measure made-up models."""
    before = os.environ.get(learning.SWITCH)
    os.environ[learning.SWITCH] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[learning.SWITCH]
        else:
            os.environ[learning.SWITCH] = before


def _run(options: argparse.Namespace) -> int:
    path = _file(options.folder)
    history = History(path)
    if options.reset:
        removed = history.reset()
        if history.trouble is not None:
            raise ConfigError(f"{path} cannot be emptied ({history.trouble}); delete the file")
        print(json.dumps({"removed": removed}) if options.json else f"{removed} rows deleted")
    else:
        summary = history.summary()
        print(json.dumps(summary, indent=2) if options.json else describe(summary))
    history.close()
    return 0


def _file(folder: Path | None) -> Path:
    if folder is None:
        try:
            return stores.folder() / NAME
        except ImportError as error:
            raise ConfigError(
                f"the history's folder is not known ({error}); install platformdirs, or give "
                f"--folder"
            ) from None
    if not folder.is_dir():
        raise ConfigError(f"--folder {folder} is no folder; give the one with {NAME}")
    return folder / NAME
