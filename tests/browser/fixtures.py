"""Fixtures of the browser tests: one ComfyUI a frontend, one browser a worker, few pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lowtide.tests.hosts.fixtures import CHECKPOINT, FOLDER, place_models
from lowtide.tests.hosts.server import Server

from .frontends import Frontend, Missing, chromium, frontends
from .rig import FLAGS, Overlay, browser_context, settle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DEVICE = "npu"
CAPACITY = "4G"
_NONE = [pytest.param(None, marks=pytest.mark.skip(reason="No ComfyUI found"))]

__all__ = ["CHECKPOINT", "browser", "front", "nodes_2", "overlay", "page"]


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


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def nodes_2(request: pytest.FixtureRequest, front: Front) -> bool:
    """Whether nodes are drawn as HTML. Frontends that cannot are left out by the plugin."""
    return request.param


@pytest.fixture(scope="module")
def overlay(front: Front, browser: Browser, nodes_2: bool) -> Iterator[Overlay]:
    """A page with the overlay, kept for all tests of a file."""
    settle(front.server, Comfy_VueNodes_Enabled=nodes_2)
    context = browser_context(browser)
    made = Overlay(context.new_page(), front.server)
    made.goto()
    yield made
    context.close()


@pytest.fixture
def page(front: Front, browser: Browser) -> Iterator[Page]:
    """A page of its own, still empty, of the classic canvas."""
    settle(front.server, Comfy_VueNodes_Enabled=False)
    context = browser_context(browser)
    yield context.new_page()
    context.close()
