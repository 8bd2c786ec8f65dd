"""pytest plugin of the host tests: picks devices, shows ComfyUI's log on failure, and says at the
end what was not tested.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .comfyui import survey

LOG_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "devices(*names): deselected on every other device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what would count memory on the CPU, and repeat what one device has shown."""
    unwanted = [item for item in items if not _wanted(item)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


def _wanted(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("devices")
    callspec = getattr(item, "callspec", None)
    boot = callspec.params.get("session_server") if callspec else None
    return not marker or not boot or boot[1] in marker.args


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
