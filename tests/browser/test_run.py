"""A run in a real browser: what the overlay shows is what the server and its counters say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lowtide.tests.browser.graphs import in_subgraph, workflow
from lowtide.tests.browser.rig import Overlay
from lowtide.tests.hosts import graphs
from lowtide.tests.hosts.fixtures import CHECKPOINT

pytestmark = pytest.mark.host

GIB = 1 << 30
# Each message's figures beside the chip's text once that is painted, if no other came meanwhile.
WATCH = """() => {
  window.seen = [];
  const { store, chip } = lowtide;
  store.on('figures', () => {
    const { seq, devices: [it], running } = store.state;
    const before = chip.painted;
    const look = (frames) => requestAnimationFrame(() => {
      if (store.state.seq !== seq) return;
      if (chip.painted === before) return look(3);
      if (frames) return look(frames - 1);
      const text = document.querySelector('.lowtide-chip').innerText.trim();
      window.seen.push([text, it.total - it.free, it.total, running]);
    });
    look(3);
  });
}"""


def short(count: int) -> str:
    """Bytes as the chip writes them."""
    value = count / GIB
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def figures(count: int | None) -> str:
    """Bytes as tables and badges write them."""
    if count is None:
        return "\u2013"
    for unit, size, digits in (("GB", GIB, 2), ("MB", 1 << 20, 1), ("KB", 1 << 10, 1)):
        if abs(count) >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count} B"


@pytest.fixture(scope="module")
def ran(overlay: Overlay) -> tuple[Overlay, dict[str, Any]]:
    """The overlay after one run, and that run as the server knows it."""
    overlay.server.free()
    overlay.server.post("/lowtide/next", {"level": None, "budget_gb": None})
    overlay.load(workflow(seed=7))
    overlay.js(WATCH)
    name = overlay.run()
    overlay.wait(
        "(id) => lowtide.store.state.runs.some((it) => it.run === id && it.nodes.length)", name
    )
    overlay.wait("() => !lowtide.store.state.running")
    overlay.page.wait_for_timeout(400)
    return overlay, next(run for run in overlay.state()["runs"] if run["run"] == name)


def test_the_chip_follows_a_run(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    seen = overlay.js("() => window.seen")
    live = [entry for entry in seen if entry[3] and entry[1] is not None]
    assert live, seen
    assert len({entry[1] for entry in live}) >= 2, "the figures never changed while it ran"
    for text, used, total, _ in live:
        share = f"{round(100 * used / total)}%"
        assert share in text or f"{short(used)}/{short(total)} GB" in text, (text, used, total)


def test_the_chip_equals_the_counters(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    counters = overlay.server.counters()
    overlay.wait(
        "(it) => { const d = lowtide.store.state.devices[0];"
        " return d.allocated === it.allocated && d.reserved === it.reserved; }",
        {"allocated": counters["allocated"], "reserved": counters["reserved"]},
    )
    overlay.page.wait_for_timeout(300)
    tooltip = overlay.chip_tooltip()
    assert f"allocated {figures(counters['allocated'])}" in tooltip
    assert f"reserved {figures(counters['reserved'])}" in tooltip
    assert f"peak {figures(counters['peak_allocated'])}" in tooltip
    assert "R " in overlay.chip_text() and "RAM: " in tooltip


def test_badges_equal_the_peaks_of_the_nodes(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    assert {span["node"] for span in run["nodes"]} == set("1234567")
    badges = overlay.badges()
    for span in run["nodes"]:
        assert figures(span["peak_allocated"]) in badges[span["node"]], (span, badges)


def test_badges_are_drawn(ran: tuple[Overlay, dict[str, Any]], nodes_2: bool):
    overlay, run = ran
    if not nodes_2:
        # The canvas has no elements to ask: the badges' own colour must be in the picture.
        drawn = overlay.js(
            """() => { app.canvas.draw(true, true);
              const { width, height } = app.canvas.canvas;
              const image = app.canvas.canvas.getContext('2d').getImageData(0, 0, width, height);
              const pixels = new Uint32Array(image.data.buffer);
              return pixels.filter((it) => it === 0xff554133).length; }"""
        )
        assert drawn > 500
        return
    for span in run["nodes"]:
        box = overlay.page.locator(f'[data-node-id="{span["node"]}"]').first
        assert figures(span["peak_allocated"]) in box.inner_text(), span


def test_heat_colours_the_node_that_cost_most(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    most = max(run["nodes"], key=lambda span: span["peak_allocated"])
    overlay.js("() => app.extensionManager.setting.set('Lowtide.Badges.Heat', 'peak')")
    overlay.page.wait_for_timeout(300)
    stroke = overlay.js(
        "(id) => { const node = app.graph.getNodeById(Number(id)) ?? app.graph.getNodeById(id);"
        " return node.strokeStyles.lowtide(); }",
        most["node"],
    )
    overlay.js("() => app.extensionManager.setting.set('Lowtide.Badges.Heat', 'off')")
    assert re.fullmatch(r"hsl\(0, 75%, 36%\)", stroke["color"]), stroke
    overlay.page.wait_for_timeout(300)
    assert overlay.js("() => app.graph._nodes.every((it) => !it.strokeStyles.lowtide())")


def test_the_panel_shows_the_models_of_the_server(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.panel("models")
    overlay.page.wait_for_timeout(300)
    rows, models = overlay.rows(), overlay.state()["models"]
    assert len(rows) == len(models) >= 1
    for row, model in zip(rows, models, strict=True):
        assert row[0] == model["name"]
        names = ("size", "on_device", "streamed", "fp8", "pinned", "on_host")
        assert row[3:9] == [figures(model[it]) for it in names]


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
    overlay.page.wait_for_timeout(200)
    rows = overlay.rows()
    assert len(rows) == len(run["nodes"])
    for row, span in zip(rows, run["nodes"], strict=True):
        assert row[0].startswith(f"#{span['node']}")
        assert row[1] == span["class_type"]
        assert row[4] == figures(span["peak_allocated"])
        assert row[7] == figures(span["peak_reserved"])
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
    overlay.run() if not overlay.state()["models"] else None
    panel = overlay.panel("receipts")
    count = len(overlay.state()["receipts"])
    panel.locator('[data-key="free"]').click()
    overlay.wait(
        "(n) => document.querySelectorAll('.lowtide-panel tbody tr').length === Math.min(20, n)",
        count + 1,
    )
    assert overlay.server.counters()["allocated"] == 0
    receipt = overlay.state()["receipts"][-1]
    assert receipt["by"] == "user"
    assert overlay.rows()[0][3] == figures(receipt["freed"])


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
    assert panel.locator('[data-key="level"]').input_value() == ""


def test_the_fit_check_marks_nodes_and_says_what_to_change(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    panel = overlay.panel("fit")
    panel.locator('[data-key="check"]').click()
    overlay.wait("() => lowtide.fit.result && !lowtide.fit.busy", seconds=60)
    overlay.page.wait_for_timeout(300)
    answer = overlay.js("() => lowtide.fit.result.nodes")
    rows = {row[0].split()[0]: row for row in overlay.rows()}
    assert set(rows) == {f"#{node}" for node in answer} and rows
    for node, said in answer.items():
        assert rows[f"#{node}"][1:4] == [
            *(figures(said["need"]), figures(said["free"])),
            {True: "yes", False: "no", None: "\u2013"}[said["fits"]],
        ]
    # This very graph has run here: what it needs was measured.
    sampler = next(span for span in run["nodes"] if span["class_type"] == "KSampler")
    assert answer[sampler["node"]]["need"] >= sampler["peak_allocated"], answer[sampler["node"]]
    panel.locator('[data-key="clear"]').click()
    overlay.wait("() => lowtide.fit.result === null")


def test_menus_say_what_a_node_costs_and_unload_its_model(ran: tuple[Overlay, dict[str, Any]]):
    overlay, run = ran
    offered = """() => {
      const node = app.graph.getNodeById(5) ?? app.graph.getNodeById('5');
      const entries = app.collectNodeMenuItems?.(node) ?? [];
      if (!app.collectNodeMenuItems) node.getExtraMenuOptions(app.canvas, entries);
      const more = app.collectCanvasMenuItems?.(app.canvas)
        ?? app.canvas.getExtraMenuOptions(app.canvas, []);
      window.offered = [...entries, ...more].filter((it) => it?.content?.startsWith('Lowtide'));
      return window.offered.map((it) => it.content);
    }"""
    texts = overlay.js(offered)
    assert "Lowtide: what does this node cost" in texts
    assert "Lowtide: free device memory" in texts and len(texts) >= 4
    overlay.panel("models")
    overlay.js("() => window.offered[0].callback()")
    toast = overlay.page.locator(".p-toast-message, [data-testid=toast]", has_text="peak").first
    toast.wait_for()
    sampler = next(span for span in run["nodes"] if span["class_type"] == "KSampler")
    assert figures(sampler["peak_allocated"]) in toast.inner_text()
    overlay.page.wait_for_timeout(300)
    line = overlay.page.locator(".lowtide-line").inner_text()
    assert line.startswith("#5 KSampler"), line


def test_a_subgraph_has_the_totals_of_its_nodes(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.load(workflow(seed=23))
    group = overlay.js(in_subgraph())
    name = overlay.run()
    overlay.wait("(id) => lowtide.store.state.runs.some((it) => it.run === id)", name)
    overlay.page.wait_for_timeout(600)
    run = next(it for it in overlay.state()["runs"] if it["run"] == name)
    inner = [span for span in run["nodes"] if span["node"].startswith(f"{group}:")]
    assert {span["class_type"] for span in inner} == {"KSampler", "VAEDecode"}
    badge = next(text for text in overlay.badges()[group] if text.startswith("\u03a3"))
    assert figures(max(span["peak_allocated"] for span in inner)) in badge


def test_a_hidden_tab_paints_nothing(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.panel("models")
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    count = "() => lowtide.chip.painted + lowtide.panel.painted + lowtide.badges.painted"
    overlay.js(hide, True)
    overlay.page.wait_for_timeout(200)
    before, seq = overlay.js(count), overlay.js("() => lowtide.store.state.seq")
    overlay.wait("(seq) => lowtide.store.state.seq >= seq + 2", seq)
    overlay.page.wait_for_timeout(200)
    assert overlay.js(count) == before
    overlay.js(hide, False)
    overlay.wait(f"(before) => ({count})() > before", before)


def test_no_error_of_ours_on_the_page(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    # Frontend 1.27 has one of its own when a node is not found.
    assert [it for it in overlay.errors if "reading 'id'" not in it] == []
