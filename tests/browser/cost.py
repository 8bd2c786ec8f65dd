"""What the overlay costs a page: CPU time of its main thread, beside the same page without it.

    python -m lowtide.tests.browser.cost [SECONDS [ROUNDS]]

Each round opens the page with the overlay and without (an empty file in place of its entry), in
turns, idle and while a prompt runs; the medians of both are subtracted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide.tests.hosts.fixtures import FOLDER, place_models
from lowtide.tests.hosts.server import Server

from .fixtures import CAPACITY, DEVICE
from .frontends import Frontend, chromium, frontends
from .graphs import workflow
from .rig import FLAGS, READY, browser_context, settle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECONDS, ROUNDS = 10.0, 3
STEPS = 400
# The frontend logs an error for every message that nobody listens to; that is no cost of ours.
SILENT = """import { api } from "../../scripts/api.js";
for (const kind of ["sample", "models", "node", "run", "receipt", "next", "rescue"])
  api.addEventListener(`lowtide.${kind}`, () => {});
"""
TARGETS = {"idle": 5.0, "running": 20.0}


def measure(page: Page, seconds: float) -> float:
    """Milliseconds of CPU the page's main thread takes a second."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> tuple[float, float]:
        found = {
            it["name"]: it["value"] for it in session.send("Performance.getMetrics")["metrics"]
        }
        return found["TaskDuration"], page.evaluate("() => performance.now()") / 1000

    first, begin = busy()
    page.wait_for_timeout(1000 * seconds)
    last, end = busy()
    session.detach()
    return 1000 * (last - first) / (end - begin)


def one(browser: Browser, server: Server, overlay: bool, seconds: float) -> dict[str, float]:
    """The page idle, then while a prompt runs."""
    context = browser_context(browser)
    page = context.new_page()
    if not overlay:
        page.route(
            "**/lowtide.js",
            lambda route: route.fulfill(content_type="text/javascript", body=SILENT),
        )
    page.goto(server.url + "/", wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=90_000)
    page.evaluate("async (it) => { await app.loadGraphData(it); }", workflow(steps=STEPS))
    if overlay:
        page.wait_for_selector(".lowtide-chip:visible")
    page.wait_for_timeout(4000)
    found = {"idle": measure(page, seconds)}
    page.evaluate("() => void app.queuePrompt(0, 1)")
    server.wait_running("5", steps=1, timeout=240)
    found["running"] = measure(page, seconds)
    if "5" not in server.counters()["progress"]:
        raise RuntimeError("the prompt ended before the time was over: raise STEPS")
    server.interrupt()
    while not server.counters()["idle"]:
        page.wait_for_timeout(200)
    context.close()
    return found


def compare(frontend: Frontend, nodes_2: bool, seconds: float, rounds: int) -> dict[str, Any]:
    """Medians without and with the overlay, by state."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        server = Server(
            frontend.installation,
            DEVICE,
            Path(base),
            folder=FOLDER,
            capacity=CAPACITY,
            arguments=frontend.arguments(),
        )
        place_models(server)
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        server.start()
        try:
            settle(server, Comfy_VueNodes_Enabled=nodes_2)
            runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            for turn in range(rounds):
                for overlay in (False, True) if turn % 2 else (True, False):
                    runs[overlay].append(one(browser, server, overlay, seconds))
        finally:
            server.stop()
            browser.close()
    return {
        state: [statistics.median(it[state] for it in runs[overlay]) for overlay in (False, True)]
        for state in TARGETS
    }


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else SECONDS
    rounds = int(arguments[1]) if len(arguments) > 1 else ROUNDS
    print("| frontend | nodes | state | without, ms/s | with, ms/s | added | at most |")
    print("|---|---|---|---:|---:|---:|---:|")
    kept = True
    for frontend in frontends():
        for nodes_2 in (False, True):
            if nodes_2 and not frontend.has_nodes_2:
                continue
            kind = "2.0" if nodes_2 else "classic"
            for state, (without, using) in compare(frontend, nodes_2, seconds, rounds).items():
                added = using - without
                kept = kept and added <= TARGETS[state]
                print(
                    f"| {frontend.version} | {kind} | {state} | {without:.1f} | {using:.1f}"
                    f" | {added:+.1f} | {TARGETS[state]:.0f} |",
                    flush=True,
                )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
