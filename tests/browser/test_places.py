"""Where the overlay stands: beside ComfyUI's controls, in every theme, back after it was away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fakes import device, model, receipt, run, span, state
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.frontends import Missing, axe
from lowtide.tests.browser.graphs import workflow
from lowtide.tests.browser.rig import SIZE, Overlay, browser_context, fake_state, settle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.host

CONTROLS = """() => {
  const chip = [...document.querySelectorAll('.lowtide-chip')]
    .find((it) => it.getClientRects().length).getBoundingClientRect();
  const inside = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return [...document.querySelectorAll('button, input, select, a[href], [role=button]')]
    .filter((it) => !it.closest('.lowtide-chip, .lowtide-panel') && it.checkVisibility?.())
    .filter((it) => it.getClientRects().length && inside(it.getBoundingClientRect(), chip))
    .map((it) => it.outerHTML.slice(0, 160));
}"""
TOASTS = ".p-toast-message, [data-testid=toast]"
BOX = """() => { const r = [...document.querySelectorAll('.lowtide-chip')]
  .find((it) => it.getClientRects().length).getBoundingClientRect();
  const at = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
  const on_top = Boolean(at?.closest('.lowtide-chip'));
  return { x: r.x, y: r.y, right: r.right, bottom: r.bottom, on_top }; }"""


def shown() -> dict[str, Any]:
    spans = [
        span("1", "CheckpointLoaderSimple"),
        span("5", "KSampler", 1.0, peak_allocated=1 << 31),
    ]
    return state(
        devices=[device(used=5.5)],
        models=[model("SDXL"), model("SDXLClipModel", kind="clip", on_device=0)],
        runs=[run("one", spans)],
        receipts=[receipt()],
        history={"runs": 3, "bytes": 4096, "rows": [{"model": "SDXL", "peak_bytes": 1 << 30}]},
    )


@pytest.fixture
def calm(front: Front, page: Page) -> Overlay:
    """A page with a state that never changes."""
    told = shown()
    fake_state(page, lambda: told)
    made = Overlay(page, front.server)
    made.goto()
    made.load(workflow())
    return made


def inside_window(box: dict[str, Any]) -> bool:
    return (
        box["x"] >= 0
        and box["y"] >= 0
        and box["right"] <= SIZE["width"] + 0.5
        and box["bottom"] <= SIZE["height"] + 0.5
    )


def test_the_page_at_1280_by_720(calm: Overlay, front: Front):
    page = calm.page
    page.wait_for_timeout(1500)
    assert page.locator(TOASTS).count() == 0, page.locator(TOASTS).all_inner_texts()
    assert calm.chip.count() == 1
    box = page.evaluate(BOX)
    assert inside_window(box) and box["on_top"], box
    assert page.evaluate(CONTROLS) == []

    # Two devices, each metric hidden alone, and only percentages.
    setting = "([id, value]) => app.extensionManager.setting.set(id, value)"
    text = calm.chip_text()
    assert "VRAM" in text or "V " in text
    page.evaluate(setting, ["Lowtide.Chip.Compact", "never"])
    page.wait_for_timeout(200)
    assert "VRAM 7.0/8.0 GB · RAM 12/32 GB" in calm.chip_text()
    page.evaluate(setting, ["Lowtide.Chip.Vram", False])
    page.wait_for_timeout(200)
    assert calm.chip_text().endswith("RAM 12/32 GB") and "VRAM" not in calm.chip_text()
    page.evaluate(setting, ["Lowtide.Chip.Vram", True])
    page.evaluate(setting, ["Lowtide.Chip.Ram", False])
    page.evaluate(setting, ["Lowtide.Chip.Peak", True])
    page.wait_for_timeout(200)
    assert "VRAM 7.0/8.0 GB · ↑6.5" in calm.chip_text() and "RAM 12" not in calm.chip_text()
    page.evaluate(setting, ["Lowtide.Chip.Ram", True])
    page.evaluate(setting, ["Lowtide.Chip.Peak", False])
    page.evaluate(setting, ["Lowtide.Chip.Compact", "always"])
    page.wait_for_timeout(200)
    assert "V 88% · R 38%" in calm.chip_text()
    assert "8.00 GB" in calm.chip_tooltip() and "peak 6.50 GB" in calm.chip_tooltip()
    page.evaluate(setting, ["Lowtide.Chip.Show", False])
    page.wait_for_timeout(200)
    assert calm.chip.count() == 0
    page.evaluate(setting, ["Lowtide.Chip.Show", True])
    page.evaluate(setting, ["Lowtide.Chip.Compact", "narrow"])
    page.wait_for_timeout(200)
    assert calm.chip.count() == 1

    # Focus mode takes the top bar away and brings it back.
    calm.command("Workspace.ToggleFocusMode")
    page.wait_for_timeout(2500)
    assert calm.chip.count() == 0
    calm.command("Workspace.ToggleFocusMode")
    page.wait_for_timeout(2500)
    assert calm.chip.count() == 1
    assert page.evaluate(CONTROLS) == []

    # The panel, by its keys alone, in both themes, and what axe says of it.
    panel = calm.panel("models")
    box = panel.bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= SIZE["width"] + 0.5
    panel.locator('[data-view="models"]').focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.view") == "timeline"
    calm.shot(f"panel-{front.frontend.version}-dark")
    dark = colours(page)
    complain(page)
    page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.wait_for_timeout(600)
    calm.shot(f"panel-{front.frontend.version}-light")
    light = colours(page)
    complain(page)
    page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    assert contrast(dark) >= 4.5 and contrast(light) >= 4.5, (dark, light)
    assert luminance(light[1]) > 0.4 > luminance(dark[1])
    assert [it for it in calm.errors if "reading 'id'" not in it] == []


def test_without_a_top_bar_the_chip_has_a_place_of_its_own(calm: Overlay):
    page = calm.page
    page.evaluate("() => app.extensionManager.setting.set('Comfy.UseNewMenu', 'Disabled')")
    floating = page.locator(".lowtide-floating")
    for _ in range(30):
        page.evaluate("() => lowtide.chip.refresh()")
        if floating.count():
            break
        page.wait_for_timeout(200)
    assert inside_window(page.evaluate(BOX))
    assert page.evaluate(CONTROLS) == []
    first = floating.bounding_box()
    assert first
    page.mouse.move(first["x"] + 8, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(5000, -500, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    moved = page.evaluate(BOX)
    assert inside_window(moved) and moved["y"] == 0 and moved["x"] > first["x"]
    assert page.locator(".lowtide-panel").count() == 0, "dragging is not clicking"
    calm.command("Lowtide.ResetChip")
    page.wait_for_timeout(200)
    again = floating.bounding_box()
    assert again and abs(again["x"] - first["x"]) < 2 and abs(again["y"] - first["y"]) < 2
    page.evaluate("() => app.extensionManager.setting.set('Comfy.UseNewMenu', 'Top')")
    for _ in range(30):
        page.evaluate("() => lowtide.chip.refresh()")
        if not floating.count():
            break
        page.wait_for_timeout(200)
    assert floating.count() == 0 and calm.chip.count() == 1


def colours(page: Page) -> list[list[int]]:
    """Text and background of the panel, as red, green, blue."""
    code = """() => { const styles = getComputedStyle(document.querySelector('.lowtide-panel'));
      const canvas = document.createElement('canvas').getContext('2d');
      return [styles.color, styles.backgroundColor].map((it) => {
        canvas.fillStyle = it; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); }); }"""
    return page.evaluate(code)


def luminance(colour: list[int]) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(part / 255) for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(pair: list[list[int]]) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted(luminance(colour) for colour in pair)
    return (high + 0.05) / (low + 0.05)


def complain(page: Page) -> None:
    """Fail with what axe-core finds serious in our elements."""
    try:
        source = axe()
    except Missing as missing:
        pytest.skip(str(missing))
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate(source)
    for view in ("models", "timeline", "receipts", "history", "fit"):
        page.locator(f'.lowtide-panel [data-view="{view}"]').click()
        page.wait_for_timeout(150)
        found = page.evaluate(
            """async () => (await axe.run({ include: [['.lowtide-panel'], ['.lowtide-chip']] }))
              .violations.filter((it) => ['serious', 'critical'].includes(it.impact))
              .map((it) => [it.id, it.nodes.map((node) => node.html.slice(0, 200))])"""
        )
        assert found == [], view


def test_a_second_tab_shows_the_same(front: Front, browser: Browser):
    settle(front.server, Comfy_VueNodes_Enabled=False)
    context = browser_context(browser)
    tabs = [Overlay(context.new_page(), front.server) for _ in range(2)]
    for tab in tabs:
        tab.goto()
        tabs[0].load(workflow(seed=11))
    name = tabs[0].run()
    for tab in tabs:
        tab.wait("(id) => lowtide.store.state.runs.some((it) => it.run === id)", name)
    assert tabs[0].js("() => lowtide.store.state.boot") == tabs[1].js(
        "() => lowtide.store.state.boot"
    )
    # The other tab has another graph on its screen: no badge of this run belongs there.
    tabs[1].page.wait_for_timeout(500)
    peaks = tabs[1].js("() => lowtide.badges.spans().length")
    assert peaks == 0
    tabs[0].page.wait_for_timeout(300)
    assert tabs[0].js("() => lowtide.badges.spans().length") >= 7
    context.close()
