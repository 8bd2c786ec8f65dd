"""Fixtures of the browser tests: one ComfyUI a frontend, one browser a worker, few pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.hosts.fixtures import CHECKPOINT, FOLDER, place_models
from lowtide.tests.hosts.server import Server

from .fakes import state
from .frontends import Frontend, Missing, chromium, frontends
from .graphs import workflow
from .rig import FLAGS, Overlay, Told, browser_context, settle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEVICE = "npu"
CAPACITY = "4G"
_NONE = [pytest.param(None, marks=pytest.mark.skip(reason="No ComfyUI found"))]

_SEEDS = count(100)
# Each message's figures beside the chip's text once that is painted, if no other came meanwhile.
WATCH = """() => {
  window.seen = [];
  if (window.watching) return;
  window.watching = true;
  const { store, chip } = lowtide;
  store.on('figures', () => {
    const { seq, devices: [it], running } = store.state;
    const before = chip.painted;
    const look = (frames) => requestAnimationFrame(() => {
      if (store.state.seq !== seq) return;
      if (chip.painted === before) return look(3);
      if (frames) return look(frames - 1);
      const text = document.querySelector('.lowtide-chip').innerText.trim();
      window.seen.push([text, it.total - it.free, it.total, running]);
    });
    look(3);
  });
}"""

__all__ = ["CHECKPOINT", "browser", "calm", "front", "nodes_2", "overlay", "page", "ran", "told"]


@dataclass(frozen=True)
class Front:
    """A running ComfyUI with one frontend."""

    frontend: Frontend
    server: Server


def _boots() -> list[object]:
    return [pytest.param(it, id=f"{it.version}-{DEVICE}") for it in frontends()]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window; skipped where there is none."""
    reason = "no browser tests: pip install playwright"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    try:
        executable = chromium()
    except Missing as missing:
        pytest.skip(str(missing))
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session", params=_boots() or _NONE)
def front(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """A ComfyUI on the simulated accelerator that serves the frontend, with a random checkpoint."""
    frontend: Frontend = request.param
    try:
        arguments = frontend.arguments()
    except Missing as missing:
        pytest.skip(str(missing))
    base = tmp_path_factory.mktemp(f"browser-{frontend.version}")
    found = frontend.installation
    server = Server(found, DEVICE, base, folder=FOLDER, capacity=CAPACITY, arguments=arguments)
    place_models(server)
    server.start()
    yield Front(frontend, server)
    server.stop()


@pytest.fixture(scope="session", params=[False, True], ids=["classic", "nodes2"])
def nodes_2(request: pytest.FixtureRequest, front: Front) -> bool:
    """Whether nodes are drawn as HTML. Frontends that cannot are left out by the plugin."""
    return request.param


@pytest.fixture(scope="session")
def overlay(front: Front, browser: Browser, nodes_2: bool) -> Iterator[Overlay]:
    """A page with the overlay, kept for all tests of a kind of nodes."""
    settle(front.server, Comfy_VueNodes_Enabled=nodes_2)
    context = browser_context(browser)
    made = Overlay(context.new_page(), front.server)
    made.goto()
    yield made
    faults = made.faults()
    context.close()
    assert faults == []


@pytest.fixture(scope="module")
def ran(overlay: Overlay, request: pytest.FixtureRequest) -> tuple[Overlay, dict[str, Any]]:
    """The overlay after one run, and that run as the server knows it.

    In a file that says ``FROM_NOTHING = True`` with nothing loaded or cached before.
    """
    if getattr(request.module, "FROM_NOTHING", False):
        overlay.server.free()
    overlay.server.post("/lowtide/next", {"level": None, "budget_gb": None})
    overlay.load(workflow(seed=next(_SEEDS)))
    overlay.js(WATCH)
    name = overlay.run()
    overlay.wait("(id) => lowtide.badges.spans().some((it) => it.run === id)", name)
    overlay.wait("() => !lowtide.store.state.running && !lowtide.badges._due")
    return overlay, next(run for run in overlay.state()["runs"] if run["run"] == name)


@pytest.fixture(scope="session")
def told(front: Front, browser: Browser) -> Iterator[Told]:
    """A page with a state of a test's own; ``calm`` is what tests take."""
    settle(front.server, Comfy_VueNodes_Enabled=False)
    context = browser_context(browser)
    made = Told(context.new_page(), front.server)
    made.tell(state())
    made.goto()
    made.load(workflow())
    yield made
    faults = made.faults()
    context.close()
    assert faults == []


@pytest.fixture
def calm(told: Told) -> Iterator[Told]:
    """That page, calm: one device, nothing loaded, and ComfyUI's settings as they were."""
    told.tell(state())
    yield told
    told.restore()


@pytest.fixture
def page(front: Front, browser: Browser) -> Iterator[Page]:
    """A page of its own, still empty, of the classic canvas."""
    settle(front.server, Comfy_VueNodes_Enabled=False)
    context = browser_context(browser)
    yield context.new_page()
    context.close()
