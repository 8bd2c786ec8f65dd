"""The fit check while the server still predicts: shown, asked again, and ended by an edit."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.tests.browser.fakes import GB
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Told

pytestmark = pytest.mark.host


class Fake:
    """Answers the check: pending for the first ``times`` requests."""

    def __init__(self, told: Told, times: int) -> None:
        self.asked: list[Any] = []
        self._times = times
        told.page.route("**/lowtide/fit", self._answer)

    def _answer(self, route: Any) -> None:
        self.asked.append(route.request.post_data_json)
        pending = len(self.asked) <= self._times
        why = "soon" if pending else "predicted"
        node = {"need": None if pending else GB, "free": 3 * GB, "why": why, "remedy": None}
        node["fits"] = None if pending else True
        answer = {"fits": node["fits"], "pending": int(pending), "nodes": {"5": node}}
        route.fulfill(json=answer)


def test_what_is_being_predicted_is_asked_for_again(calm: Told):
    fake = Fake(calm, 2)
    calm.load(workflow())
    panel = calm.panel("fit")
    panel.locator('[data-key="check"]').click()
    summary = panel.locator(".lowtide-summary")
    calm.until(lambda: "Predicting" in summary.inner_text() and "1" in summary.inner_text())
    assert calm.rows()[0][3] == "\u2013"
    calm.until(lambda: calm.rows()[0][1:4] == ["1.00 GB", "3.00 GB", "yes"])
    calm.toast("Every node of this graph fits")
    assert "Predicting" not in summary.inner_text()
    assert len(fake.asked) == 3 and fake.asked[0] == fake.asked[2]
    calm.page.wait_for_timeout(2500)
    assert len(fake.asked) == 3, "nothing is pending any more"
    calm.js("() => lowtide.fit.clear()")
    calm.page.unroute("**/lowtide/fit")


def test_an_edit_ends_the_asking(calm: Told):
    fake = Fake(calm, 1000)
    calm.load(workflow())
    panel = calm.panel("fit")
    panel.locator('[data-key="check"]').click()
    calm.until(lambda: len(fake.asked) == 2)
    calm.js(
        """() => { const node = app.graph.nodes.find((it) => it.type === 'EmptyLatentImage');
          node.widgets[0].value += 64; }"""
    )
    calm.wait("() => lowtide.fit.result.pending === 0")
    count = len(fake.asked)
    calm.page.wait_for_timeout(2500)
    assert len(fake.asked) == count <= 3
    assert "Predicting" not in panel.locator(".lowtide-summary").inner_text()
    calm.js("() => lowtide.fit.clear()")
    calm.page.unroute("**/lowtide/fit")
