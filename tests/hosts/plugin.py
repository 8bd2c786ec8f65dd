"""pytest plugin of the host tests: says what was not tested, shows ComfyUI's log on failure."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .comfyui import survey

LOG_LINES = 60


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
        terminalreporter.write_sep("!", "NOTHING WAS TESTED INSIDE COMFYUI", red=True, bold=True)
        terminalreporter.write_line(
            "Set COMFYUI_PATH to one or several ComfyUI folders (and COMFYUI_PYTHON where they"
            " have no .venv) to run the tests marked 'host'.",
            red=True,
        )
