"""A process that writes to a history, for the tests to run several of, and to kill.

python history_writer.py FILE NAME COUNT     prints a line for each row that is in the file
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _pack() -> None:
    """The pack without its root module, so that nothing heavy is imported."""
    for name, path in (("lowtide", ROOT), ("lowtide.memory", ROOT / "memory")):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        module.__spec__ = importlib.util.spec_from_loader(name, None, is_package=True)
        sys.modules[name] = module


def main() -> None:
    from lowtide.memory.history import History, Key, Row

    file, name, count = sys.argv[1:]
    history = History(Path(file))
    for number in range(int(count)):
        key = Key("gpu", name, "1x4x8x8", "none", number)
        done = history.add([Row(key, "denoising", "none", number, predicted=100, measured=110)])
        print(number if done else f"waiting: {history.trouble}", flush=True)


_pack()
assert "torch" not in sys.modules
main()
