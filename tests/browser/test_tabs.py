"""A second tab, and a tab that nobody sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Overlay

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.host


def test_a_second_tab_shows_the_same(ran: tuple[Overlay, dict[str, Any]], front: Front, page: Page):
    overlay, _ = ran
    other = Overlay(page, front.server)
    other.goto()
    overlay.load(workflow(seed=11))
    name = overlay.run()
    for tab in (overlay, other):
        tab.wait("(id) => lowtide.store.state.runs.some((it) => it.run === id)", name)
    # One of it all, but for what comes with the next sample.
    same = """() => { const { runs, models, receipts, next, boot } = lowtide.store.state;
      return { runs, models, receipts, next, boot }; }"""
    overlay.until(lambda: overlay.js(same) == other.js(same))
    # The other tab has another graph on its screen: no badge of this run belongs there.
    overlay.wait("() => lowtide.badges.spans().length >= 7")
    other.wait("() => !lowtide.badges._due")
    assert other.js("() => lowtide.badges.spans().length") == 0
    other.command("Lowtide.NextLevel")
    overlay.wait("() => lowtide.store.state.next.level === 'none'")
    overlay.command("Lowtide.ClearLevel")
    other.wait("() => lowtide.store.state.next.level === null")
    assert other.faults() == []


def test_a_hidden_tab_paints_nothing(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.panel("models")
    count = "() => lowtide.chip.painted + lowtide.panel.painted + lowtide.badges.painted"
    changes = """() => { window.changes = 0;
      window.watcher = new MutationObserver((them) => { window.changes += them.length; });
      for (const it of document.querySelectorAll('.lowtide-chip, .lowtide-panel'))
        watcher.observe(it, { subtree: true, childList: true, attributes: true,
          characterData: true }); }"""
    overlay.hide(True)
    overlay.page.wait_for_timeout(100)
    overlay.js(changes)
    before = overlay.js(count)
    # Everything that would be painted: figures, models, nodes, a run, receipts, the next level.
    overlay.server.post("/lowtide/next", {"level": "balanced", "budget_gb": None})
    name = overlay.run()
    overlay.server.post("/lowtide/free", {"target": "vram", "keep": []})
    overlay.wait("(id) => lowtide.store.state.runs.some((it) => it.run === id)", name)
    overlay.wait("() => lowtide.store.state.models.length === 0")
    overlay.wait("() => lowtide.store.state.next.level === 'balanced'")
    assert overlay.js(count) == before and overlay.js("() => window.changes") == 0
    overlay.js("() => window.watcher.disconnect()")
    overlay.hide(False)
    overlay.until(lambda: overlay.rows() == [])
    overlay.wait(f"(before) => ({count})() > before", before)
    overlay.until(lambda: overlay.page.locator('[data-key="level"]').input_value() == "balanced")
    overlay.command("Lowtide.ClearLevel")
    overlay.wait("() => lowtide.store.state.next.level === null")
