"""What stands on the nodes: peaks, heat, totals of subgraphs, what won't fit; and menus."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lowtide.tests.browser.fakes import GB, run, span, state
from lowtide.tests.browser.figures import figures, heat
from lowtide.tests.browser.graphs import WORKFLOW, in_subgraph, workflow
from lowtide.tests.browser.rig import Overlay, Told

pytestmark = pytest.mark.host
FROM_NOTHING = True

# Node id -> red, green, blue of its outline as it is drawn; null without one.
OUTLINES = """(nodes2) => {
  const canvas = document.createElement('canvas').getContext('2d');
  const rgb = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const of = (node) => {
    if (!nodes2) {
      const stroke = node.strokeStyles.lowtide();
      return stroke ? rgb(stroke.color) : null;
    }
    const it = getComputedStyle(document.querySelector(`.lg-node[data-node-id="${node.id}"]`));
    return it.outlineStyle === 'solid' && it.outlineWidth === '3px' ? rgb(it.outlineColor) : null;
  };
  return Object.fromEntries(app.graph._nodes.map((node) => [node.id, of(node)]));
}"""
BADGES_DRAWN = """(colour) => { app.canvas.draw(true, true);
  const { width, height } = app.canvas.canvas;
  const image = app.canvas.canvas.getContext('2d').getImageData(0, 0, width, height);
  return new Uint32Array(image.data.buffer).filter((it) => it === colour).length; }"""


def near(one: list[int] | None, other: tuple[int, int, int]) -> bool:
    return one is not None and max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2


def test_badges_equal_the_peaks_of_the_nodes(ran: tuple[Overlay, dict[str, Any]], nodes_2: bool):
    overlay, run = ran
    assert {span["node"] for span in run["nodes"]} == set("1234567")
    badges = overlay.badges()
    peaks = {it["node"]: figures(it["peak_allocated"]) for it in run["nodes"]}
    for node, peak in peaks.items():
        assert peak in badges[node], (node, badges)
    if not nodes_2:
        # The canvas has no elements to ask: the badges' own colour must be in the picture.
        assert overlay.js(BADGES_DRAWN, 0xFF554133) > 500
        return
    for node, peak in peaks.items():
        box = overlay.page.locator(f'[data-node-id="{node}"]').first
        overlay.until(lambda box=box, peak=peak: peak in box.inner_text())


@pytest.mark.parametrize("by", ["peak", "time"])
def test_heat_colours_each_node_by_its_share(
    ran: tuple[Overlay, dict[str, Any]], nodes_2: bool, by: str
):
    overlay, run = ran
    cost = {it["node"]: it["seconds" if by == "time" else "peak_allocated"] for it in run["nodes"]}
    most = max(cost.values())
    overlay.setting("Lowtide.Badges.Heat", by)

    def coloured() -> bool:
        found = overlay.js(OUTLINES, nodes_2)
        return all(near(found[node], heat(value / most)) for node, value in cost.items())

    try:
        overlay.until(coloured, 5)
        if not nodes_2:  # the hottest node's stroke is in the picture
            assert overlay.js(BADGES_DRAWN, 0xFF1717A1) > 500
        overlay.setting("Lowtide.Badges.Show", False)
        overlay.until(lambda: not any(set(it) & set(map(figures, cost.values()))
                                      for it in overlay.badges().values()), 5)  # fmt: skip
    finally:
        overlay.setting("Lowtide.Badges.Heat", "off")
        overlay.setting("Lowtide.Badges.Show", True)
    overlay.until(lambda: set(overlay.js(OUTLINES, nodes_2).values()) == {None}, 5)


def test_the_fit_check_marks_nodes(ran: tuple[Overlay, dict[str, Any]], nodes_2: bool):
    overlay, _ = ran
    misfit = {"need": 9 * GB, "free": 3 * GB, "fits": False, "why": "measured", "remedy": "less"}
    fits = {"need": GB, "free": 3 * GB, "fits": True, "why": "measured", "remedy": None}
    overlay.page.route(
        "**/lowtide/fit",
        lambda route: route.fulfill(json={"fits": False, "nodes": {"5": misfit, "6": fits}}),
    )
    overlay.command("Lowtide.CheckFit")
    overlay.wait("() => lowtide.fit.result")
    overlay.page.unroute("**/lowtide/fit")
    overlay.until(lambda: near(overlay.js(OUTLINES, nodes_2)["5"], (185, 28, 28)), 5)
    text = "won't fit: 9.00 GB of 3.00 GB"
    assert text in overlay.badges()["5"] and text not in overlay.badges()["6"]
    assert overlay.js(OUTLINES, nodes_2)["6"] is None
    if nodes_2:
        assert text in overlay.page.locator('[data-node-id="5"]').first.inner_text()
    overlay.js("() => lowtide.fit.clear()")
    overlay.until(lambda: overlay.js(OUTLINES, nodes_2)["5"] is None, 5)
    assert text not in overlay.badges()["5"]


def test_nothing_of_it_is_saved_with_the_workflow(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    overlay.setting("Lowtide.Badges.Heat", "peak")
    overlay.wait("() => !lowtide.badges._due")
    saved = overlay.js("() => JSON.stringify(app.graph.serialize())")
    overlay.setting("Lowtide.Badges.Heat", "off")
    assert "owtide" not in saved and not re.search(r"hsl\(|\d [GM]B", saved)


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
    sampler = next(span for span in run["nodes"] if span["class_type"] == "KSampler")
    toast = overlay.toast(figures(sampler["peak_allocated"]))
    assert "peak" in toast.inner_text()
    line = overlay.page.locator(".lowtide-line")
    overlay.until(lambda: line.inner_text().startswith("#5 KSampler"))
    model = next(it for it in overlay.state()["models"] if it["kind"] == "model")
    (entry,) = [at for at, text in enumerate(texts) if text.startswith("Lowtide: unload")]
    assert model["name"] in texts[entry], texts
    overlay.js("(at) => window.offered[at].callback()", entry)
    overlay.until(lambda: model["id"] not in {it["id"] for it in overlay.state()["models"]})


def test_a_subgraph_has_the_totals_of_its_nodes(ran: tuple[Overlay, dict[str, Any]], nodes_2: bool):
    overlay, _ = ran
    overlay.load(workflow(seed=23))
    group = overlay.js(in_subgraph())
    name = overlay.run()
    overlay.wait("(id) => lowtide.badges.spans().some((it) => it.run === id)", name)
    run = next(it for it in overlay.state()["runs"] if it["run"] == name)
    inner = [span for span in run["nodes"] if span["node"].startswith(f"{group}:")]
    assert {span["class_type"] for span in inner} == {"KSampler", "VAEDecode"}
    peak, seconds = max(it["peak_allocated"] for it in inner), sum(it["seconds"] for it in inner)
    took = f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    text = f"\u03a3 {figures(peak)} · {took}"
    overlay.until(lambda: text in overlay.badges()[group], 5)
    if nodes_2:
        box = overlay.page.locator(f'[data-node-id="{group}"]').first
        overlay.until(lambda: text in box.inner_text(), 5)
    # Inside it, each node has its own.
    overlay.js(
        "(id) => app.canvas.openSubgraph((app.graph.getNodeById(Number(id))"
        " ?? app.graph.getNodeById(id)).subgraph)",
        group,
    )
    own = {span["node"].partition(":")[2]: figures(span["peak_allocated"]) for span in inner}
    overlay.until(lambda: all(own[it] in overlay.badges().get(it, []) for it in own), 5)


def test_a_node_twice_in_one_run_has_its_highest_peak(calm: Told):
    """And of one from the cache the figure of the run before."""
    first = [span("4", "EmptyLatentImage", peak_allocated=7 << 20), span("5", "KSampler")]
    second = [
        span("5", "KSampler", peak_allocated=GB, pages_peak=GB),
        span("5", "KSampler", 1.0, peak_allocated=3 * GB // 2),
        span("made", "VAEDecode", 2.0, parent="5", peak_allocated=9 * GB),
    ]
    calm.tell(state(runs=[run("first", first), run("second", second)]))
    calm.until(lambda: "2.00 GB" in calm.badges()["5"])
    assert "7.0 MB" in calm.badges()["4"]
    # A run of other nodes is another workflow's.
    other = [span("5", "VAEDecode", peak_allocated=8 * GB)]
    calm.tell(state(runs=[run("third", other)]))
    calm.until(lambda: "2.00 GB" not in calm.badges()["5"])
    assert "8.00 GB" not in str(calm.badges())
    assert calm.js("() => lowtide.badges.spans().length") == 0


def test_badges_stay_when_a_node_is_taken_out_or_replaced(calm: Told):
    """Whose run it was, ComfyUI's history knows; then every node counts for itself."""
    known = {"prompt": [0, "", {}, {"extra_pnginfo": {"workflow": {"id": WORKFLOW}}}]}
    calm.page.route("**/history/kept", lambda route: route.fulfill(json={"kept": known}))
    spans = [span("5", "KSampler"), span("99", "VAEDecode"), span("6", "VAEEncode")]
    calm.tell(state(runs=[run("kept", spans)]))
    calm.until(lambda: "1.00 GB" in calm.badges()["5"])
    calm.page.unroute("**/history/kept")
    assert "1.00 GB" not in calm.badges()["6"]
