"""Names from outside are text and nothing else, wherever the overlay shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fakes import GB, HOSTILE, device, model, receipt, run, span, state
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Told, say

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
            *(model(name) for name in (HOSTILE[0], HOSTILE[6])),
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


def test_hostile_text_is_inert(calm: Told):
    page = calm.page
    fit = {"need": 9 * GB, "free": GB, "fits": False, "why": HOSTILE[0], "remedy": HOSTILE[1]}
    other = {"need": 1, "free": 1, "fits": True, "why": "", "remedy": ""}
    answer = {"fits": False, "nodes": {"5": fit, HOSTILE[0]: other}}
    page.route("**/lowtide/fit", lambda route: route.fulfill(json=answer))
    refusal = {"error": HOSTILE[0]}
    page.route("**/lowtide/unload", lambda route: route.fulfill(status=409, json=refusal))
    page.route("**/lowtide/rescue", lambda route: route.fulfill(status=404, json=refusal))
    calm.tell(hostile_state())
    for view in VIEWS:
        panel = calm.panel(view)
        if view == "fit":
            panel.locator('[data-key="check"]').click()
            page.wait_for_function("() => lowtide.fit.result")
        if view == "timeline":
            panel.locator("canvas").wait_for()
            harmless(page)
            panel.locator('[data-key="table"]').click()
        calm.until(lambda: len(calm.rows()) >= 1)
        harmless(page)
    calm.until(lambda: any("won't fit" in text for text in calm.badges()["5"]))
    calm.panel("timeline").locator('[data-key="table"]').click()
    panel = calm.panel("models")
    panel.locator("button", has_text="Unload").first.click()
    calm.toast("onerror")
    calm.hear("receipt", receipt=receipt(HOSTILE[0], by=HOSTILE[0]))
    calm.hear("node", prompt_id=HOSTILE[0], span=span("5", HOSTILE[0]))
    calm.hear("next", next=HOSTILE[0])
    for text in HOSTILE:
        calm.hear("rescue", question=text, open=True, text=text)
        dialog = page.locator(".lowtide-dialog")
        dialog.wait_for()
        said = dialog.inner_text()
        assert len(said) < 700 and not set("\x00\x1b\u202e") & set(said)
        assert dialog.locator("img, script, svg").count() == 0
        dialog.locator('[data-key="yes"]').click()
        dialog.wait_for(state="detached")
    harmless(page)
    menu = page.evaluate(
        """() => { const node = app.graph.getNodeById(5) ?? app.graph.getNodeById('5');
          return lowtide.menus.forNode(node)
            .flatMap((it) => [it, ...(it.submenu?.options ?? [])]).map((it) => it.content); }"""
    )
    assert len(menu) == 4 and not any(set("<>") & set(text) for text in menu), menu
    assert page.evaluate("() => window.hacked") is None
    calm.js("() => lowtide.fit.clear()")
    page.unroute("**/lowtide/*")
    for name in ("fit", "unload", "rescue"):
        page.unroute(f"**/lowtide/{name}")


def test_hostile_titles_and_workflows_are_inert(calm: Told):
    """Names a person can give in the graph itself: titles of nodes, and the workflow's own id."""
    graph = workflow()
    for node in graph["nodes"]:
        node["title"] = HOSTILE[node["id"] % len(HOSTILE)]
    graph["id"] = HOSTILE[0]
    calm.load(graph)
    spans = [span(str(it["id"]), it["type"], float(it["id"])) for it in graph["nodes"]]
    calm.tell(state(runs=[run("one", spans)]))
    panel = calm.panel("timeline")
    panel.locator('[data-key="table"]').click()
    calm.until(lambda: len(calm.rows()) == len(spans))
    calm.js("() => lowtide.menus._cost(app.graph._nodes[0])")
    calm.toast("peak 1.00 GB")
    harmless(calm.page)
    panel.locator('[data-key="table"]').click()
    calm.load(workflow())


def test_messages_that_make_no_sense_change_nothing(calm: Told):
    calm.tell(state(models=[model("SDXL")]))
    before = calm.js("() => JSON.stringify(lowtide.store.state.models)")
    seq, boot = calm.js("() => [lowtide.store.state.seq, lowtide.store.state.boot]")
    for message in (None, 3, "x", {"boot": boot, "seq": seq, "models": []}, {"boot": boot}):
        for kind in ("models", "rescue", "receipt", "next"):
            say(calm.page, kind, message)
    assert calm.js("() => JSON.stringify(lowtide.store.state.models)") == before
    say(calm.page, "models", {"boot": boot, "seq": seq + 5, "models": "none"})
    assert calm.js("() => lowtide.store.state.models.length") == 0
    # An older message that comes late is not taken.
    say(calm.page, "models", {"boot": boot, "seq": seq + 4, "models": [model("old")]})
    assert calm.js("() => lowtide.store.state.models.length") == 0
    # One of another server makes the state be fetched anew.
    say(calm.page, "models", {"boot": "other", "seq": seq + 9, "models": []})
    calm.wait("() => lowtide.store.state.models.length === 1")
    assert calm.page.locator(".lowtide-dialog").count() == 0
