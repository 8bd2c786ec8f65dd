"""Names from outside are text and nothing else, wherever the overlay shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fakes import GB, HOSTILE, device, model, receipt, run, span, state
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Overlay, fake_state, say

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.host

VIEWS = ("models", "timeline", "receipts", "history", "fit")


def hostile_state() -> dict[str, Any]:
    """Hostile text in every place where the contract has text."""
    spans = [span(name, name, float(i), status=name) for i, name in enumerate(HOSTILE)]
    spans.append(span("5", "KSampler", 9.0, peak_allocated=3 * GB))
    attempt = {"node": HOSTILE[0], "rung": HOSTILE[0], "outcome": HOSTILE[0], "seconds": 1.0}
    return state(
        devices=[device(name=HOSTILE[0]), device(HOSTILE[3]), device("npu:2")],
        models=[
            *(model(name, kind=name, device=name) for name in HOSTILE),
            *(model(name) for name in HOSTILE[4:6]),
        ],
        runs=[run(HOSTILE[0], spans, status=HOSTILE[0], attempts=[attempt])],
        receipts=[
            receipt(name, by=name, by_owner={name: GB}, errors=[name], device=name,
                    holders=[{"owner": name, "held": GB}])
            for name in HOSTILE
        ],
        history={"runs": 1, "bytes": 10, "rows": [{name: name for name in HOSTILE}]},
    )  # fmt: skip


def harmless(page: Page) -> None:
    """No script ran, no element came of text, and nothing is as long as what came in."""
    assert page.evaluate("() => window.hacked") is None
    found = page.evaluate(
        """() => [...document.querySelectorAll('.lowtide-panel, .lowtide-chip, [class*=toast]')]
          .flatMap((it) => [...it.querySelectorAll('img, script, svg[onload], iframe, [onerror]')])
          .map((it) => it.outerHTML.slice(0, 200))
          .filter((it) => !it.includes('p-icon') && !it.startsWith('<svg'))"""
    )
    assert found == []
    longest = page.evaluate(
        """() => Math.max(0, ...[...document.querySelectorAll('.lowtide-panel :is(td, th, p)')]
          .map((it) => it.textContent.length))"""
    )
    assert longest < 1200
    raw = page.evaluate(
        "() => /[\\u0000\\u001b\\u202a-\\u202e\\u2066-\\u2069]/"
        ".test([...document.querySelectorAll('.lowtide-panel')].map((it) => it.textContent).join())"
    )
    assert raw is False


def test_hostile_text_is_inert(front: Front, page: Page):
    told = hostile_state()
    fake_state(page, lambda: told)
    page.route(
        "**/lowtide/fit",
        lambda route: route.fulfill(
            json={
                "fits": False,
                "nodes": {
                    "5": {
                        "need": 9 * GB,
                        "free": GB,
                        "fits": False,
                        "why": HOSTILE[0],
                        "remedy": HOSTILE[1],
                    },
                    HOSTILE[0]: {"need": 1, "free": 1, "fits": True, "why": "", "remedy": ""},
                },
            }
        ),
    )
    page.route(
        "**/lowtide/unload", lambda route: route.fulfill(status=409, json={"error": HOSTILE[0]})
    )
    overlay = Overlay(page, front.server)
    overlay.goto()
    overlay.load(workflow())
    for view in VIEWS:
        panel = overlay.panel(view)
        if view == "fit":
            panel.locator('[data-key="check"]').click()
            page.wait_for_function("() => lowtide.fit.result")
        page.wait_for_timeout(150)
        if view == "timeline":
            harmless(page)
            panel.locator('[data-key="table"]').click()
            page.wait_for_timeout(150)
        assert len(overlay.rows()) >= 1, view
        harmless(page)
    assert any("won't fit" in text for text in overlay.badges()["5"]), overlay.badges()
    panel = overlay.panel("models")
    panel.locator("button", has_text="Unload").first.click()
    page.wait_for_selector(".p-toast-message, [data-testid=toast]")
    say(page, "receipt", {"boot": "fake", "seq": 1, "receipt": receipt(HOSTILE[0], by=HOSTILE[0])})
    say(
        page,
        "node",
        {"boot": "fake", "seq": 2, "prompt_id": HOSTILE[0], "span": span("5", HOSTILE[0])},
    )
    page.wait_for_timeout(300)
    harmless(page)
    menu = page.evaluate(
        """() => { const node = app.graph.getNodeById(5) ?? app.graph.getNodeById('5');
          return lowtide.menus.forNode(node)
            .flatMap((it) => [it, ...(it.submenu?.options ?? [])]).map((it) => it.content); }"""
    )
    assert len(menu) == 4 and not any(set("<>") & set(text) for text in menu), menu
    assert page.evaluate("() => window.hacked") is None


def test_messages_that_make_no_sense_change_nothing(front: Front, page: Page):
    told = state(models=[model("SDXL")])
    fake_state(page, lambda: told)
    overlay = Overlay(page, front.server)
    overlay.goto()
    before = page.evaluate("() => JSON.stringify(lowtide.store.state.models)")
    for message in (None, 3, "x", {"boot": "fake", "seq": 0, "models": []}, {"boot": "fake"}):
        say(page, "models", message)
    assert page.evaluate("() => JSON.stringify(lowtide.store.state.models)") == before
    say(page, "models", {"boot": "fake", "seq": 5, "models": "none"})
    assert page.evaluate("() => lowtide.store.state.models.length") == 0
    # An older message that comes late is not taken.
    say(page, "models", {"boot": "fake", "seq": 4, "models": [model("old")]})
    assert page.evaluate("() => lowtide.store.state.models.length") == 0
