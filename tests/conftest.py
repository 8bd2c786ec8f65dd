"""Makes this checkout importable as ``lowtide``, whatever its folder is called.

ComfyUI registers the pack under its path, pip under ``lowtide``; pytest would import the root
``__init__.py`` under the folder's name. One fixed module whose ``__path__`` is the checkout, and a
plain directory collector for the root, keep all three apart.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _register_checkout() -> None:
    if "lowtide" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "lowtide", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["lowtide"] = module
    spec.loader.exec_module(module)


class _PlainRoot:
    """Collects the pack's root as a plain folder: its ``__init__.py`` is no test package."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector):
        if path == ROOT:
            return pytest.Dir.from_parent(parent, path=path)
        return None


class _Groups:
    """Lets one worker run what shares costly set-up: a file's tests, or those in one ComfyUI."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            boot = params.get("session_server") or [params.get("installation")]
            parts = (
                [*boot, params.get("file"), params.get("place")] if boot[0] else [item.path.stem]
            )
            name = "-".join(str(part) for part in parts if part is not None)
            item.add_marker(pytest.mark.xdist_group(name))


_register_checkout()

from lowtide.tests.accelerator.fixtures import *  # noqa: E402, F403
from lowtide.tests.hosts import plugin as hosts_plugin  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PlainRoot(), "lowtide-plain-root")
    config.pluginmanager.register(_Groups(), "lowtide-groups")
    config.pluginmanager.register(hosts_plugin, "lowtide-hosts")
