"""Server or connection goes away and comes back: the overlay says so, and is right again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.rig import Overlay
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.host

# As a machine that sleeps: the socket is gone, and no other can be had for a while.
SLEEP = """async () => {
  const { api } = await import('/scripts/api.js');
  window.Awake = window.WebSocket;
  window.WebSocket = class extends Awake {
    constructor() { super(`ws://${location.host}/system_stats`); }
  };
  api.socket.close();
}"""


@pytest.fixture
def overlay_of_its_own(front: Front, page: Page) -> Iterator[Overlay]:
    made = Overlay(page, front.server)
    made.goto()
    yield made
    front.server.post("/lowtide/next", {"level": None, "budget_gb": None})


@pytest.mark.newest
def test_it_comes_back_after_sleep_and_after_a_restart(front: Front, overlay_of_its_own: Overlay):
    overlay, server = overlay_of_its_own, front.server
    panel = overlay.panel("models")
    boot = overlay.state()["boot"]
    assert overlay.js("() => lowtide.store.state.boot") == boot

    overlay.js(SLEEP)
    overlay.wait("() => !lowtide.store.connected")
    overlay.until(lambda: "no server" in overlay.chip_text())
    # All that is not heard of meanwhile.
    server.post("/lowtide/next", {"level": "balanced", "budget_gb": 2.0})
    run = server.queue(graphs.stock(CHECKPOINT, size=64, steps=1, seed=77))
    assert run.succeeded, run.error
    server.post("/lowtide/free", {"target": "vram", "keep": []})
    assert overlay.js("() => lowtide.store.state.next.level") is None
    overlay.js("() => { window.WebSocket = window.Awake; }")
    overlay.wait("() => lowtide.store.connected", seconds=30)
    now = overlay.state()
    known = overlay.js("() => lowtide.store.state")
    for name in ("boot", "next", "models", "runs", "receipts"):
        assert known[name] == now[name], name
    assert known["runs"][-1]["run"] == run.prompt_id and known["boot"] == boot
    overlay.until(lambda: "no server" not in overlay.chip_text())
    overlay.until(lambda: panel.locator('[data-key="level"]').input_value() == "balanced")

    server.stop()
    overlay.wait("() => !lowtide.store.connected")
    overlay.until(lambda: "no server" in overlay.chip_text())
    server.start()
    overlay.wait("(old) => lowtide.store.connected && lowtide.store.state.boot !== old", boot, 30)
    assert overlay.js("() => lowtide.store.state.boot") == overlay.state()["boot"]
    assert overlay.js("() => lowtide.store.state.next.level") is None
    assert overlay.js("() => lowtide.store.state.runs.length") == 0
    seq = overlay.js("() => lowtide.store.state.seq")
    overlay.wait("(seq) => lowtide.store.state.seq > seq", seq, 20)
    overlay.until(lambda: "no server" not in overlay.chip_text())
    overlay.until(lambda: panel.locator('[data-key="level"]').input_value() == "")


def test_a_server_that_answers_late_is_asked_again_at_once(
    front: Front, overlay_of_its_own: Overlay
):
    """A state that cannot be fetched is tried for later, and at once if the socket is back."""
    overlay = overlay_of_its_own
    overlay.page.route("**/lowtide/state", lambda route: route.abort())
    overlay.js("() => void lowtide.store.refresh()")
    overlay.wait("() => !lowtide.store.connected && lowtide.store._hurry")
    overlay.page.wait_for_timeout(4000)  # the waits have grown to some seconds
    overlay.page.unroute("**/lowtide/state")
    overlay.js("""async () => { const { api } = await import('/scripts/api.js');
      api.dispatchEvent(new CustomEvent('reconnected')); }""")
    overlay.wait("() => lowtide.store.connected", seconds=1)
    assert overlay.faults() == []
