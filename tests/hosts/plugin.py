"""pytest plugin of the host tests: picks devices, shows ComfyUI's log on failure, and says at the
end what was not tested.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from .comfyui import Installation, survey

LOG_LINES = 60
FULL = os.environ.get("LOWTIDE_TEST_HOSTS") == "full"
"""Whether every test runs in every ComfyUI on every device: ``make test-hosts``."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "devices(*names): deselected on every other device")
    config.addinivalue_line(
        "markers", "long: takes its time and says the same in every ComfyUI: runs in the newest"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what would count memory on the CPU, and repeat what one device has shown."""
    unwanted = [item for item in items if not _wanted(item)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


def _wanted(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return True
    if item.get_closest_marker("long") and not FULL and not _newest(callspec.params):
        return False
    marker = item.get_closest_marker("devices")
    boot = callspec.params.get("session_server")
    return not marker or not boot or boot[1] in marker.args


def _newest(parameters: dict[str, object]) -> bool:
    """Whether a test runs in the newest ComfyUI, or says nothing of one."""
    found = [it for value in parameters.values() for it in _parts(value)]
    return all(it == survey()[0][-1] for it in found if isinstance(it, Installation))


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value, getattr(value, "installation", None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        tail = "\n".join(server.log().splitlines()[-LOG_LINES:])
        report.sections.append((f"end of {server.log_path}", tail))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    usable, refused = survey()
    if usable:
        tested = ", ".join(f"{it.version} ({it.root})" for it in usable)
        terminalreporter.write_line(f"ComfyUI found: {tested}")
    for reason in refused:
        terminalreporter.write_line(f"ComfyUI not usable: {reason}", yellow=True)
    if not usable:
        text = "No ComfyUI found: NOTHING WAS TESTED INSIDE IT"
        terminalreporter.write_sep("!", text, red=True, bold=True)
        terminalreporter.write_line(
            "Set COMFYUI_PATH to one or several ComfyUI folders (and COMFYUI_PYTHON where they"
            " have no .venv) to run the tests marked 'host'.",
            red=True,
        )
