"""A page of ComfyUI in headless Chromium: opens it, loads graphs, runs them, reads our elements."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.hosts.server import Server

from .frontends import Missing, axe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

OUT = Path(__file__).resolve().parents[2] / "out"
SIZE = {"width": 1280, "height": 720}
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # It reaches this machine only. (A route of the tests' own for that would have to answer every
    # request, and could not while a test waits for the server.)
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
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
TOASTS = ".p-toast-message, [data-testid=toast]"
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

    def until(self, probe: Callable[[], object], seconds: float = 15.0) -> None:
        """Returns once ``probe`` gives something true."""
        for _ in range(int(seconds * 20)):
            if probe():
                return
            self.page.wait_for_timeout(50)
        self.shot("not-so")
        said = f"{inspect.getsource(probe).strip()}; the chip: {self.chip.all_inner_texts()}"
        raise AssertionError(f"not so after {seconds} s: {said}")

    def setting(self, name: str, value: object) -> None:
        """Change one of ComfyUI's settings, or of Lowtide's."""
        self.js("([id, value]) => app.extensionManager.setting.set(id, value)", [name, value])

    def hide(self, hidden: bool) -> None:
        """As if another tab of the browser came to the front, or this one again."""
        code = """(hidden) => {
          Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
          document.dispatchEvent(new Event('visibilitychange'));
        }"""
        self.js(code, hidden)

    def faults(self) -> list[str]:
        """Errors on the page. Frontend 1.27 has one of its own when a node is not found."""
        return [it for it in self.errors if "reading 'id'" not in it]

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
        count = len(workflow["nodes"])
        self.wait("(count) => app.graph._nodes.length === count && !lowtide.badges._due", count)

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

    @property
    def toasts(self) -> Any:
        return self.page.locator(TOASTS)

    def toast(self, text: str) -> Any:
        """The toast with that text, once it is there."""
        found = self.page.locator(TOASTS, has_text=text).first
        found.wait_for(timeout=10_000)
        return found

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


class Told(Overlay):
    """A page whose state is what a test says: the server's own messages come too late for it."""

    def __init__(self, page: Page, server: Server) -> None:
        super().__init__(page, server)
        self._seq = 10**9
        self._changed: dict[str, Any] = {}
        self._told: dict[str, Any] = {}
        page.route("**/lowtide/state", lambda route: route.fulfill(json=self._told))

    def tell(self, told: dict[str, Any]) -> None:
        """Have the page get this state."""
        self._seq += 1000
        self._told = {**told, "boot": self.state()["boot"], "seq": self._seq}
        if self.page.url.startswith(self.server.url):
            self.js("() => void lowtide.store.refresh()")
            self.wait("(seq) => lowtide.store.state.seq === seq", self._seq)

    def hear(self, kind: str, **message: Any) -> None:
        """A message of the server's."""
        self._seq += 1
        say(self.page, kind, {"boot": self._told["boot"], "seq": self._seq, **message})

    def setting(self, name: str, value: object) -> None:
        """As everywhere; ``restore`` undoes it."""
        read = "(id) => app.extensionManager.setting.get(id)"
        self._changed.setdefault(name, self.js(read, name))
        super().setting(name, value)

    def restore(self) -> None:
        """Settings as they were, and no toast."""
        close = """(toasts) => { const all = app.extensionManager.toast;
          if (all.removeAll) return all.removeAll();
          document.querySelectorAll(toasts).forEach((it) => it.querySelector('button')?.click());
        }"""
        self.js(close, TOASTS)
        for name, value in self._changed.items():
            super().setting(name, value)
        self._changed.clear()


def browser_context(browser: Browser, **options: Any) -> BrowserContext:
    """A fresh profile."""
    return browser.new_context(viewport=SIZE, service_workers="block", **options)


def settle(server: Server, **settings: object) -> None:
    """ComfyUI's own settings before a page is loaded; `_` stands for `.`."""
    given = {name.replace("_", "."): value for name, value in settings.items()}
    server.post("/settings", {**SETTINGS, **given})


def axe_finds(page: Page, places: list[str]) -> list[Any]:
    """What axe-core finds serious in those elements; skips where there is no axe-core."""
    try:
        source = axe()
    except Missing as missing:
        pytest.skip(str(missing))
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate(source)
    return page.evaluate(
        """async (places) => (await axe.run({ include: places.map((it) => [it]) }))
          .violations.filter((it) => ['serious', 'critical'].includes(it.impact))
          .map((it) => [it.id, it.nodes.map((node) => node.html.slice(0, 200))])""",
        places,
    )


def say(page: Page, kind: str, message: dict[str, Any]) -> None:
    """A message as if the server had sent it."""
    code = """async ([kind, detail]) => {
      const { api } = await import('/scripts/api.js');
      api.dispatchEvent(new CustomEvent(`lowtide.${kind}`, { detail }));
    }"""
    page.evaluate(code, [kind, message])
