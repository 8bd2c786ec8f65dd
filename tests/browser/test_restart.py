"""The server goes away and comes back: the overlay says so, and is right again by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.rig import Overlay

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.host


def test_the_overlay_comes_back_with_the_server(front: Front, page: Page):
    overlay = Overlay(page, front.server)
    overlay.goto()
    boot = overlay.js("() => lowtide.store.state.boot")
    assert boot == overlay.state()["boot"]
    front.server.post("/lowtide/next", {"level": "balanced", "budget_gb": None})
    front.server.stop()
    overlay.wait("() => !lowtide.store.connected")
    page.wait_for_timeout(300)
    assert "no server" in overlay.chip_text()
    front.server.start()
    overlay.wait("(old) => lowtide.store.connected && lowtide.store.state.boot !== old", boot, 30)
    assert overlay.js("() => lowtide.store.state.boot") == overlay.state()["boot"]
    assert overlay.js("() => lowtide.store.state.next.level") is None
    seq = overlay.js("() => lowtide.store.state.seq")
    overlay.wait("(seq) => lowtide.store.state.seq > seq", seq, 20)
    assert "no server" not in overlay.chip_text()
