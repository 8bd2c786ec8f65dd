"""A node out of memory, rescue on ask: the browser shows the question, and its answer counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fixtures import CAPACITY, Front
from lowtide.tests.browser.rig import Overlay, axe_finds
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.host


class Asked:
    """A page whose prompts run out of memory in the sampler, and are asked for."""

    def __init__(self, overlay: Overlay, sampling: int) -> None:
        self.overlay = overlay
        self.server = overlay.server
        self._sampling = sampling

    @property
    def dialog(self) -> Any:
        return self.overlay.page.locator("dialog.lowtide-dialog")

    def fails(self) -> str:
        """A prompt of this page whose allocation in the middle fails; once the page asks."""
        self.server.free()
        self.server.post("/lowtide-test/fault", {"k": self._sampling})
        client = self.overlay.js("async () => (await import('/scripts/api.js')).api.clientId")
        body = {"prompt": graph(), "client_id": client}
        prompt = self.server.post("/prompt", body)["prompt_id"]
        self.overlay.page.get_by_role("dialog", name="Lowtide").wait_for(timeout=30_000)
        assert "is out of memory. Run it again with less?" in self.dialog.inner_text()
        return prompt

    def focused(self) -> str | None:
        return self.overlay.js("() => document.activeElement.dataset.key ?? null")


def graph() -> graphs.Graph:
    made = graphs.native(CHECKPOINT, "none", size=64, cleanup="always", rescue="ask")
    del made[graphs.LATENTS]
    return made


@pytest.fixture(scope="module")
def sampling(front: Front) -> int:
    """The allocation that is in the middle of a prompt."""
    server = front.server
    server.post("/lowtide-test/fault", {})
    for _ in range(2):  # the first run prepares what later ones have
        server.free()
        server.reset_counters()
        run = server.queue(graph())
        assert run.succeeded, run.error
    return server.counters()["traffic"]["allocations"] // 2


@pytest.fixture
def asked(front: Front, page: Page, sampling: int) -> Iterator[Asked]:
    overlay = Overlay(page, front.server)
    overlay.goto()
    yield Asked(overlay, sampling)
    faults = overlay.faults()
    front.server.post("/lowtide-test/fault", {"capacity": CAPACITY})
    assert faults == []


@pytest.mark.newest
def test_yes_no_and_a_prompt_that_is_cancelled(asked: Asked):
    page = asked.overlay.page
    # By the keyboard alone, in a dialog that answers nothing by itself.
    prompt = asked.fails()
    assert asked.overlay.js("() => document.activeElement.className") == "lowtide-dialog"
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
    assert asked.dialog.count() == 1
    assert axe_finds(page, [".lowtide-dialog"]) == []
    asked.overlay.shot(f"rescue-{asked.overlay.page.evaluate('() => innerWidth')}")
    page.keyboard.press("Tab")
    assert asked.focused() == "yes"
    page.keyboard.press("Tab")
    assert asked.focused() == "no"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    run = asked.server.finish(prompt)
    assert run.succeeded, run.error
    last = asked.overlay.state()["runs"][-1]
    assert [it["outcome"] for it in last["attempts"]] == ["finished"]
    assert asked.dialog.count() == 0

    prompt = asked.fails()
    page.keyboard.press("Escape")
    run = asked.server.finish(prompt)
    assert "OutOfMemoryError" in run.error and asked.dialog.count() == 0
    assert asked.overlay.state()["runs"][-1]["attempts"] == []

    prompt = asked.fails()
    asked.dialog.locator('[data-key="no"]').click()
    assert "OutOfMemoryError" in asked.server.finish(prompt).error

    # Nobody waits for an answer to this one any more: the question goes away by itself.
    prompt = asked.fails()
    asked.server.interrupt()
    asked.server.finish(prompt)
    asked.dialog.wait_for(state="detached")
    assert asked.overlay.toasts.filter(has_text="Lowtide").count() == 0


@pytest.mark.newest
def test_a_tab_that_is_loaded_anew_is_asked_again_and_no_other(asked: Asked, front: Front):
    other = Overlay(asked.overlay.page.context.new_page(), front.server)
    other.goto()
    prompt = asked.fails()
    page = asked.overlay.page
    page.wait_for_timeout(200)
    assert other.page.locator("dialog.lowtide-dialog").count() == 0
    page.reload(wait_until="domcontentloaded")
    asked.dialog.wait_for(timeout=60_000)
    page.wait_for_timeout(3500)  # it is repeated, but shown once
    assert asked.dialog.count() == 1
    asked.dialog.locator('[data-key="yes"]').click()
    run = asked.server.finish(prompt)
    assert run.succeeded, run.error
    assert other.page.locator("dialog.lowtide-dialog").count() == 0


@pytest.mark.newest
def test_a_tab_that_is_closed_says_no(asked: Asked):
    prompt = asked.fails()
    asked.overlay.page.close()
    run = asked.server.finish(prompt, timeout=40)
    assert "OutOfMemoryError" in run.error
    assert asked.server.alive
