"""pytest plugin of the browser tests: leaves out what a frontend has not, and says at the end what
was not tested.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from lowtide.tests.hosts.plugin import FULL

from .frontends import Missing, chromium, frontends


def missing() -> str | None:
    """Why no browser test can run here; ``None`` if they can."""
    if find_spec("playwright") is None:
        return "the Python package playwright is not installed"
    try:
        chromium()
    except Missing as reason:
        return str(reason)
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "newest: shown with the newest frontend, no need for others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects Nodes 2.0 on frontends that have none, and what one frontend has shown.

    LOWTIDE_TEST_HOSTS=full takes every test in every frontend, with both kinds of nodes.
    """
    unwanted = [item for item in items if not _possible(item)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


def _possible(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    frontend = callspec.params.get("front") if callspec else None
    if frontend is None:
        return True
    if item.get_closest_marker("newest") and not FULL and not frontend.separate:
        return False
    kind = callspec.params.get("nodes_2")
    if kind is not None and not FULL and frontends()[1:] and kind != frontend.separate:
        return False  # HTML nodes in the newest, the classic ones in the others
    return frontend.has_nodes_2 or not kind


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reason = missing()
    if reason is not None:
        text = "No browser: NOTHING OF THE OVERLAY WAS TESTED IN ONE"
        terminalreporter.write_sep("!", text, red=True, bold=True)
        terminalreporter.write_line(reason, red=True)
