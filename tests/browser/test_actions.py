"""What a person can do from the overlay takes effect, and every tab hears of it."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.tests.browser.fakes import GB, receipt, state
from lowtide.tests.browser.figures import figures
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Overlay, Told
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT

pytestmark = pytest.mark.host


def test_unload_takes_a_model_off_the_device(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    panel = overlay.panel("models")
    before = {it["id"]: it for it in overlay.state()["models"] if it["on_device"]}
    assert before
    target = next(iter(before))
    allocated = overlay.server.counters()["allocated"]
    row = panel.locator(f'tr[data-row="{target}"]')
    row.locator("button", has_text="Unload").click()
    row.wait_for(state="detached", timeout=10_000)
    counters = overlay.server.counters()
    assert counters["allocated"] <= allocated - before[target]["on_device"]
    assert target not in {it["id"] for it in overlay.state()["models"] if it["on_device"]}


def test_free_empties_the_device_and_leaves_a_receipt(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    if not overlay.state()["models"]:
        overlay.run()
    panel = overlay.panel("receipts")
    count = len(overlay.state()["receipts"])
    with overlay.page.expect_request("**/lowtide/free") as asked:
        panel.locator('[data-key="free"]').click()
    assert asked.value.post_data_json == {"target": "vram", "keep": []}
    overlay.until(lambda: len(overlay.rows()) == min(20, count + 1))
    assert overlay.server.counters()["allocated"] == 0
    last = overlay.state()["receipts"][-1]
    assert last["by"] == "user"
    assert overlay.rows()[0][3] == figures(last["freed"])
    overlay.toast(f"Gave back {figures(last['freed'])}")


def test_freed_while_a_prompt_runs_the_receipt_follows(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.load(workflow(seed=41, steps=150))
    known = [it["run"] for it in overlay.state()["runs"]]
    overlay.js("() => void app.queuePrompt(0, 1)")
    overlay.server.wait_running("5", 1)
    before = len(overlay.state()["receipts"])
    overlay.page.keyboard.press("Alt+Shift+U")
    overlay.toast("Will be done when the run allows it")
    overlay.server.interrupt()
    overlay.ended(known)
    overlay.until(lambda: len(overlay.state()["receipts"]) > before)
    freed = next(it for it in reversed(overlay.state()["receipts"]) if it["by"] == "user")
    overlay.toast(f"Gave back {figures(freed['freed'])}")
    assert overlay.server.counters()["allocated"] == 0


def test_level_and_budget_go_to_the_next_run(ran: tuple[Overlay, dict[str, Any]], nodes_2: bool):
    overlay, run = ran
    panel = overlay.panel("models")
    panel.locator('[data-key="level"]').select_option("aggressive")
    panel.locator('[data-key="budget"]').fill("1.5")
    panel.locator('[data-key="budget"]').press("Enter")
    overlay.wait("() => lowtide.store.state.next.budget_gb === 1.5")
    assert overlay.state()["next"] == {"level": "aggressive", "budget_gb": 1.5}
    if not nodes_2:
        # What the graph itself says is "none": all weights on the device while it samples.
        overlay.server.free()
        asked = graphs.native(CHECKPOINT, "none")
        done = overlay.server.queue(asked)
        assert done.succeeded, done.error
        applied = overlay.state()["runs"][-1]
        sampler = next(it for it in applied["nodes"] if it["class_type"] == "KSampler")
        whole = next(it for it in run["nodes"] if it["class_type"] == "KSampler")
        assert sampler["peak_allocated"] < 0.6 * whole["peak_allocated"]
    overlay.command("Lowtide.ClearLevel")
    overlay.wait("() => lowtide.store.state.next.level === null")
    assert overlay.state()["next"] == {"level": None, "budget_gb": None}
    overlay.until(lambda: panel.locator('[data-key="level"]').input_value() == "")


def test_a_level_somebody_else_sets_is_heard_of(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    panel = overlay.panel("models")
    overlay.server.post("/lowtide/next", {"level": "ultra", "budget_gb": None})
    overlay.until(lambda: panel.locator('[data-key="level"]').input_value() == "ultra")
    # The next one after it, round again.
    overlay.command("Lowtide.NextLevel")
    overlay.until(lambda: overlay.state()["next"]["level"] is None)


def test_a_refusal_says_why(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    panel = overlay.panel("models")
    budget = panel.locator('[data-key="budget"]')
    budget.fill("900")
    budget.press("Enter")
    overlay.toast("a budget of 900.00 GB is more than")
    overlay.until(lambda: budget.input_value() == "")
    overlay.page.route("**/lowtide/free", lambda route: route.abort())
    overlay.command("Lowtide.FreeVram")
    overlay.toast("the server does not answer")
    overlay.page.unroute("**/lowtide/free")


def test_the_history_is_forgotten_after_a_yes_only(calm: Told):
    kept = {"runs": 3, "bytes": 4096, "rows": [{"model": "SDXL", "peak_bytes": GB}]}
    empty = {"runs": 0, "bytes": 0, "rows": []}
    asked: list[str] = []

    def forget(route: Any) -> None:
        asked.append(route.request.method)
        route.fulfill(json={"history": empty})

    calm.page.route("**/lowtide/history/reset", forget)
    calm.tell(state(history=kept))
    panel = calm.panel("history")
    dialog = calm.page.locator(".lowtide-dialog")
    for key, times in (("Escape", 0), ("no", 0), ("yes", 1)):
        panel.locator('[data-key="reset"]').click()
        dialog.wait_for()
        if key == "Escape":
            calm.page.keyboard.press(key)
        else:
            dialog.locator(f'[data-key="{key}"]').click()
        dialog.wait_for(state="detached")
        calm.until(lambda times=times: len(asked) == times)
    calm.until(lambda: calm.js("() => lowtide.store.state.history.runs") == 0)
    calm.page.unroute("**/lowtide/history/reset")


def test_receipts_of_others_are_told_only_to_those_who_want_it(calm: Told):
    calm.hear("receipt", receipt=receipt(by="user", freed=5 * GB))
    calm.hear("receipt", receipt=receipt(by="between nodes", freed=6 * GB))
    calm.setting("Lowtide.Receipts.Toasts", True)
    calm.hear("receipt", receipt=receipt(by="between nodes", freed=7 * GB))
    calm.toast("Gave back 7.00 GB")
    shown = " ".join(calm.toasts.all_inner_texts())
    assert "5.00 GB" not in shown and "6.00 GB" not in shown
