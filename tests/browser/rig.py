"""A page of ComfyUI in headless Chromium: opens it, loads graphs, runs them, reads our elements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lowtide.tests.hosts.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

OUT = Path(__file__).resolve().parents[2] / "out"
SIZE = {"width": 1280, "height": 720}
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# What ComfyUI would otherwise greet a new user with, and what would outlive a test.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.WarnBlueprintOverwrite": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.Release.Status": "skipped",
    "Comfy.Release.Version": "9.9.9",
    "Comfy.InstalledVersion": "1.0.0",
    "Comfy.ColorPalette": "dark",
    "Comfy.Locale": "en",
    "Comfy.UseNewMenu": "Top",
}
READY = "() => window.app?.extensionManager && window.app.canvas && window.app.graph"
# The overlay's own entry, as the frontend has already imported it.
ENTRY = """async () => {
  const files = await (await fetch('/extensions')).json();
  window.lowtide = await import(files.find((file) => file.endsWith('/lowtide.js')));
}"""


class Overlay:
    """One page with the overlay in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)[:300]))

    # -- the page --------------------------------------------------------------------------------
    def goto(self) -> None:
        """Load ComfyUI and wait until our extension has the server's state."""
        self.page.goto(self.server.url + "/", wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=90_000)
        self.js(ENTRY)
        self.wait("() => lowtide.store.connected", seconds=30)
        self.page.wait_for_selector(".lowtide-chip:visible", timeout=30_000)

    def js(self, code: str, argument: object = None) -> Any:
        return self.page.evaluate(code, argument)

    def wait(self, code: str, argument: object = None, seconds: float = 15.0) -> None:
        self.page.wait_for_function(code, arg=argument, timeout=1000 * seconds)

    def command(self, name: str) -> None:
        self.js("(id) => void app.extensionManager.command.execute(id)", name)

    def shot(self, name: str) -> Path:
        OUT.mkdir(exist_ok=True)
        path = OUT / f"{name}.png"
        self.page.screenshot(path=str(path))
        return path

    # -- graphs ----------------------------------------------------------------------------------
    def load(self, workflow: dict[str, Any]) -> None:
        self.js("async (it) => { await app.loadGraphData(it); }", workflow)
        self.page.wait_for_timeout(300)

    def run(self, seconds: float = 90.0) -> str:
        """Queue the graph on the screen and wait for its end as the overlay hears of it."""
        before = self.state()["runs"]
        known = [run["run"] for run in before]
        self.js("() => void app.queuePrompt(0, 1)")
        return self.ended(known, seconds)

    def ended(self, known: list[str], seconds: float = 90.0) -> str:
        """The id of the run that is not among those known, once it is over."""
        for _ in range(int(seconds * 5)):
            for run in self.state()["runs"]:
                if run["run"] not in known and run["status"] != "running":
                    return run["run"]
            self.page.wait_for_timeout(200)
        raise AssertionError("no run ended in time")

    def state(self) -> dict[str, Any]:
        return self.server.get("/lowtide/state")

    # -- our elements ----------------------------------------------------------------------------
    @property
    def chip(self) -> Any:
        return self.page.locator(".lowtide-chip:visible")

    def chip_text(self) -> str:
        return self.chip.inner_text().strip()

    def chip_tooltip(self) -> str:
        return self.chip.get_attribute("aria-label") or ""

    def panel(self, view: str) -> Any:
        """Open the panel at a view; returns its locator."""
        panel = self.page.locator(".lowtide-panel")
        if not panel.count():
            self.command("Lowtide.TogglePanel")
        panel.wait_for(timeout=10_000)
        panel.locator(f'[data-view="{view}"]').click()
        self.page.wait_for_function(
            "(id) => document.querySelector(`[data-view=${id}]`)?.ariaSelected === 'true'", arg=view
        )
        return panel

    def rows(self) -> list[list[str]]:
        """The cells of the table the panel shows, as a person reads them."""
        return self.js(
            "() => [...document.querySelectorAll('.lowtide-panel tbody tr')]"
            ".map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
        )

    def badges(self) -> dict[str, list[str]]:
        """Node id -> the texts of its badges that are not empty, ours and the frontend's."""
        return self.js(
            "() => Object.fromEntries((app.canvas.graph ?? app.graph)._nodes.map((node) => ["
            "node.id, node.badges.map((it) => (typeof it === 'function' ? it() : it).text)"
            ".filter(Boolean)]))"
        )


def browser_context(browser: Browser, **options: Any) -> BrowserContext:
    """A fresh profile that reaches this machine only."""
    context = browser.new_context(viewport=SIZE, service_workers="block", **options)
    context.route("**/*", _stay_here)
    return context


def _stay_here(route: Route) -> None:
    url = urlsplit(route.request.url)
    if url.hostname == "127.0.0.1" or url.scheme in ("data", "blob"):
        route.continue_()
    else:
        route.abort()


def settle(server: Server, **settings: object) -> None:
    """ComfyUI's own settings before a page is loaded; `_` stands for `.`."""
    given = {name.replace("_", "."): value for name, value in settings.items()}
    server.post("/settings", {**SETTINGS, **given})


def fake_state(page: Page, state: Callable[[], dict[str, Any]]) -> None:
    """Have the page get a state of ours instead of the server's."""

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="application/json", body=json.dumps(state()))

    page.route("**/lowtide/state", answer)


def say(page: Page, kind: str, message: dict[str, Any]) -> None:
    """A message as if the server had sent it."""
    code = """async ([kind, detail]) => {
      const { api } = await import('/scripts/api.js');
      api.dispatchEvent(new CustomEvent(`lowtide.${kind}`, { detail }));
    }"""
    page.evaluate(code, [kind, message])
