"""Makes this checkout importable as ``lowtide``, whatever its folder is called.

ComfyUI registers the pack under its path, pip under ``lowtide``; pytest would import the root
``__init__.py`` under the folder's name. One fixed module whose ``__path__`` is the checkout, and a
plain directory collector for the root, keep all three apart.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
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


_register_checkout()
# What tests learn is nobody's history; the processes they start inherit this.
os.environ["LOWTIDE_HOME"] = tempfile.mkdtemp(prefix="lowtide-tests-")
atexit.register(shutil.rmtree, os.environ["LOWTIDE_HOME"], ignore_errors=True)

from lowtide.tests import groups  # noqa: E402
from lowtide.tests.accelerator.fixtures import *  # noqa: E402, F403
from lowtide.tests.browser import plugin as browser_plugin  # noqa: E402
from lowtide.tests.hosts import plugin as hosts_plugin  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PlainRoot(), "lowtide-plain-root")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(groups, "lowtide-groups")
    config.pluginmanager.register(hosts_plugin, "lowtide-hosts")
    config.pluginmanager.register(browser_plugin, "lowtide-browser")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: collecting garbage, as cleanup does, need not look through it
    each time (half a second of every test that frees something)."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def thawed() -> Iterator[None]:
    """For tests of who refers to what: the collector keeps quiet about what is frozen."""
    gc.unfreeze()
    yield
    gc.freeze()
