"""The panel's views: rows equal to the server's state, and what is saved of them."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.tests.browser.fakes import GB, model, run, span, state
from lowtide.tests.browser.figures import figures
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import Overlay, Told

pytestmark = pytest.mark.host


def test_the_models_are_those_of_the_server(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.panel("models")
    models = overlay.state()["models"]
    overlay.until(lambda: len(overlay.rows()) == len(models) >= 1)
    for row, told in zip(overlay.rows(), models, strict=True):
        assert row[0] == told["name"]
        names = ("size", "on_device", "streamed", "fp8", "pinned", "on_host")
        assert row[3:9] == [figures(told[it]) for it in names]


def test_the_timeline_shows_the_run(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    panel = overlay.panel("timeline")
    most = max(run["nodes"], key=lambda span: span["peak_allocated"])
    panel.locator("canvas").wait_for()
    said = panel.locator("canvas").get_attribute("aria-label") or ""
    assert f"{len(run['nodes'])} nodes" in said
    assert f"#{most['node']} {most['class_type']}" in said
    inked = overlay.js(
        """() => { const canvas = document.querySelector('.lowtide-chart');
          const ctx = canvas.getContext('2d');
          const image = ctx.getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(image.buffer)).size; }"""
    )
    assert inked > 8, "the chart is empty"
    panel.locator('[data-key="table"]').click()
    overlay.until(lambda: len(overlay.rows()) == len(run["nodes"]))
    for row, told in zip(overlay.rows(), run["nodes"], strict=True):
        assert row[0].startswith(f"#{told['node']}")
        assert row[1] == told["class_type"]
        assert row[4] == figures(told["peak_allocated"])
        assert row[7] == figures(told["peak_reserved"])
    panel.locator('[data-key="table"]').click()


def test_views_are_saved_as_json_and_as_a_picture(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    panel = overlay.panel("timeline")
    with overlay.page.expect_download() as saved:
        panel.locator('[data-key="json"]').click()
    text = saved.value.path().read_text(encoding="utf-8")
    assert run["run"] in text and f'"peak_allocated": {run["peak_allocated"]}' in text
    for view in ("timeline", "models"):
        panel = overlay.panel(view)
        with overlay.page.expect_download() as saved:
            panel.locator('[data-key="png"]').click()
        picture = saved.value.path().read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 2000
        assert saved.value.suggested_filename.startswith(f"lowtide-{view}-")


def test_the_history_has_the_run_that_ended_while_it_was_looked_at(
    ran: tuple[Overlay, dict[str, Any]],
):
    overlay, _ = ran
    overlay.panel("history")
    overlay.until(lambda: len(overlay.rows()) == min(200, len(overlay.state()["history"]["rows"])))
    before = overlay.state()["history"]["runs"]
    overlay.load(workflow(seed=31))
    overlay.run()
    overlay.until(lambda: overlay.state()["history"]["runs"] > before)
    overlay.wait("(before) => lowtide.store.state.history.runs > before", before)
    summary = overlay.page.locator(".lowtide-summary")
    overlay.until(lambda: f"{overlay.state()['history']['runs']} runs" in summary.inner_text())


def test_the_fit_check_of_a_graph_that_ran(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    panel = overlay.panel("fit")
    panel.locator('[data-key="check"]').click()
    overlay.wait("() => lowtide.fit.result && !lowtide.fit.busy", seconds=60)
    answer = overlay.js("() => lowtide.fit.result.nodes")
    overlay.until(lambda: len(overlay.rows()) == len(answer) > 0)
    rows = {row[0].split()[0]: row for row in overlay.rows()}
    assert set(rows) == {f"#{node}" for node in answer}
    for node, said in answer.items():
        assert rows[f"#{node}"][1:4] == [
            *(figures(said["need"]), figures(said["free"])),
            {True: "yes", False: "no", None: "\u2013"}[said["fits"]],
        ]
    # This very graph has run here, but for its seed: what it needs was measured.
    sampler = next(span for span in run["nodes"] if span["class_type"] == "KSampler")
    assert answer[sampler["node"]]["need"] >= 0.9 * sampler["peak_allocated"]
    assert answer[sampler["node"]]["why"].startswith("measured")
    panel.locator('[data-key="clear"]').click()
    overlay.wait("() => lowtide.fit.result === null")


def test_each_figure_of_a_model_is_in_its_own_column(calm: Told):
    names = ("size", "on_device", "streamed", "fp8", "pinned", "on_host")
    sizes = {name: number * GB for number, name in enumerate(names, start=1)}
    calm.tell(state(models=[{**model("one"), **sizes}]))
    calm.panel("models")
    wanted = [figures(size) for size in sizes.values()]
    calm.until(lambda: [row[3:9] for row in calm.rows()] == [wanted])


def test_predicted_stands_beside_measured(calm: Told):
    spans = [span("5", "KSampler", peak_allocated=2 * GB, predicted=5 * GB // 2)]
    calm.tell(state(runs=[run("one", spans, predicted=3 * GB)]))
    panel = calm.panel("timeline")
    summary = panel.locator(".lowtide-summary")
    calm.until(lambda: "Predicted 3.00 GB (+50%)" in summary.inner_text())
    panel.locator('[data-key="table"]').click()
    calm.until(lambda: [row[4:7] for row in calm.rows()] == [["2.00 GB", "2.50 GB", "+25%"]])
    panel.locator('[data-key="table"]').click()


def test_an_older_run_is_chosen_and_stays_so(calm: Told):
    runs = [run(f"run {at}", [span("5", "KSampler", peak_allocated=at * GB)]) for at in (1, 2, 3)]
    calm.tell(state(runs=runs))
    panel = calm.panel("timeline")
    line = panel.locator(".lowtide-summary")
    calm.until(lambda: "peak 3.00 GB" in line.inner_text())
    panel.locator('[data-key="run"]').select_option("run 2")
    calm.until(lambda: "peak 2.00 GB" in line.inner_text())
    calm.hear("run", run=run("run 4", [span("5", "KSampler", peak_allocated=4 * GB)]))
    calm.wait("() => lowtide.store.state.runs.length === 4")
    calm.page.wait_for_timeout(100)
    assert "peak 2.00 GB" in line.inner_text()
    panel.locator('[data-key="run"]').select_option("run 4")
    calm.until(lambda: "peak 4.00 GB" in line.inner_text())


def test_it_says_that_the_server_is_away(calm: Told):
    calm.tell(state(models=[model("SDXL")]))
    panel = calm.panel("models")
    calm.until(lambda: len(calm.rows()) == 1)
    calm.js("() => lowtide.store.disconnect()")
    told = panel.locator(".lowtide-summary")
    calm.until(lambda: "the server does not answer" in told.inner_text())
    for key in ("level", "budget", "free"):
        assert panel.locator(f'[data-key="{key}"]').is_disabled()
    calm.tell(state())
    calm.until(lambda: told.inner_text() == "" and panel.locator('[data-key="free"]').is_enabled())


def test_what_is_being_typed_and_looked_at_survives_a_repaint(calm: Told):
    many = [model(f"model {at}") for at in range(60)]
    calm.tell(state(models=many))
    panel = calm.panel("models")
    calm.until(lambda: len(calm.rows()) == 60)
    view = panel.locator(".lowtide-view")
    view.evaluate("(it) => (it.scrollTop = 300)")
    panel.locator('[data-key="budget"]').focus()
    calm.page.keyboard.type("2.")
    painted = calm.js("() => lowtide.panel.painted")
    calm.hear("models", models=many)
    calm.wait("(painted) => lowtide.panel.painted > painted", painted)
    assert view.evaluate("(it) => it.scrollTop") == 300
    calm.page.keyboard.type("5")
    assert panel.locator('[data-key="budget"]').input_value() == "2.5"
    row = panel.locator("tbody button", has_text="Unload").nth(3)
    row.focus()
    calm.hear("models", models=many[1:])
    calm.until(lambda: len(calm.rows()) == 59)
    label = "() => document.activeElement.getAttribute('aria-label')"
    assert calm.js(label) == "Unload model 3"
    panel.locator('[data-key="budget"]').evaluate("(it) => { it.value = ''; it.blur(); }")
