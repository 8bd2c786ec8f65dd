"""Where the overlay stands: beside ComfyUI's controls, in every theme, back after it was away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lowtide.tests.browser.fakes import device, model, receipt, run, span, state
from lowtide.tests.browser.fixtures import Front
from lowtide.tests.browser.rig import SIZE, Told, axe_finds

if TYPE_CHECKING:
    from playwright.sync_api import Page

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


def inside_window(box: dict[str, Any]) -> bool:
    return (
        box["x"] >= 0
        and box["y"] >= 0
        and box["right"] <= SIZE["width"] + 0.5
        and box["bottom"] <= SIZE["height"] + 0.5
    )


def test_nothing_of_comfyui_lies_under_the_chip(calm: Told):
    page = calm.page
    calm.tell(shown())
    calm.until(lambda: calm.toasts.count() == 0, 20)
    for compact in ("never", "always", "narrow"):
        calm.setting("Lowtide.Chip.Compact", compact)
        calm.until(lambda it=compact: ("VRAM" in calm.chip_text()) == (it == "never"))
        assert calm.chip.count() == 1
        box = page.evaluate(BOX)
        assert inside_window(box) and box["on_top"], box
        assert page.evaluate(CONTROLS) == []


def test_focus_mode_takes_it_away_and_brings_it_back(calm: Told):
    calm.command("Workspace.ToggleFocusMode")
    calm.until(lambda: calm.chip.count() == 0)
    for used in (3.5, 4.5, 5.5):  # figures come, and it does not
        calm.hear("sample", running=True, devices=[device(used=used)], host=state()["host"])
        calm.page.wait_for_timeout(800)
    assert calm.chip.count() == 0
    calm.command("Workspace.ToggleFocusMode")
    calm.until(lambda: calm.chip.count() == 1)
    calm.until(lambda: "88%" in calm.chip_text())
    assert calm.page.evaluate(CONTROLS) == []
    box = calm.page.evaluate(BOX)
    assert inside_window(box) and box["on_top"], box


def test_the_panel_in_both_themes_and_by_its_keys_alone(calm: Told, front: Front):
    page = calm.page
    calm.tell(shown())
    panel = calm.panel("models")
    box = panel.bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= SIZE["width"] + 0.5
    assert box["y"] + box["height"] <= SIZE["height"] + 0.5
    reached(calm)
    bright: dict[str, list[list[int]]] = {}
    for palette in ("dark", "light"):
        calm.setting("Comfy.ColorPalette", palette)
        calm.until(lambda it=palette: (luminance(colours(page)[1]) > 0.4) == (it == "light"))
        bright[palette] = colours(page)
        for view in ("models", "timeline", "receipts", "history", "fit"):
            calm.panel(view)
            calm.wait("(id) => document.querySelector('#lowtide-view')"
                      ".getAttribute('aria-labelledby') === `lowtide-tab-${id}`", view)  # fmt: skip
            assert axe_finds(page, [".lowtide-panel", ".lowtide-chip"]) == [], (palette, view)
        panel = calm.panel("history")
        panel.locator('[data-key="reset"]').click()
        page.get_by_role("dialog", name="Lowtide").wait_for()
        assert axe_finds(page, [".lowtide-dialog"]) == [], palette
        calm.shot(f"question-{front.frontend.version}-{palette}")
        page.keyboard.press("Escape")
        calm.panel("timeline")
        calm.shot(f"panel-{front.frontend.version}-{palette}")
    assert all(contrast(pair) >= 4.5 for pair in bright.values()), bright


def reached(calm: Told) -> None:
    """Every control of the panel by Tab, in the order in which they stand; tabs by arrows."""
    page = calm.page
    page.locator('.lowtide-panel [data-view="models"]').focus()
    seen: list[str] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "() => document.activeElement.closest('.lowtide-panel')"
            " && (document.activeElement.dataset.key ?? document.activeElement.id)"
        )
        if here is None:
            break
        seen.append(here)
        ring = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(ring) == "solid", here
    known = ["level", "budget", "free", "check", "json", "png", "lowtide-view"]
    assert seen[: len(known)] == known, seen
    assert [it for it in seen if it.startswith("Unload ")], seen
    page.locator('.lowtide-panel [data-view="models"]').focus()
    for key, view in (("ArrowRight", "timeline"), ("ArrowLeft", "models"), ("ArrowLeft", "fit")):
        page.keyboard.press(key)
        assert page.evaluate("() => document.activeElement.dataset.view") == view


def test_without_a_top_bar_the_chip_has_a_place_of_its_own(calm: Told):
    page = calm.page
    panel = page.locator(".lowtide-panel")
    if panel.count():
        calm.command("Lowtide.TogglePanel")
        panel.wait_for(state="detached")
    sample = {"running": False, "devices": [device()], "host": state()["host"]}
    floating = page.locator(".lowtide-floating:visible")

    def waits(there: bool) -> None:
        for _ in range(30):
            calm.hear("sample", **sample)
            if bool(floating.count()) == there:
                return
            page.wait_for_timeout(200)

    calm.setting("Comfy.UseNewMenu", "Disabled")
    waits(True)
    assert inside_window(page.evaluate(BOX))
    assert page.evaluate(CONTROLS) == []
    first = floating.bounding_box()
    assert first
    page.evaluate(
        """() => { const { chip } = lowtide; window.opened = 0; chip.kept = chip.open;
          chip.open = () => { window.opened += 1; }; }"""
    )
    page.mouse.move(first["x"] + 8, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(5000, -500, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    moved = page.evaluate(BOX)
    assert inside_window(moved) and moved["y"] == 0 and moved["x"] > first["x"]
    page.wait_for_timeout(100)
    assert page.evaluate("() => window.opened") == 0, "dragging is not clicking"
    # Still inside a smaller window; and a place that is none does no harm.
    page.set_viewport_size({"width": 900, "height": 500})
    calm.until(lambda: page.evaluate(BOX)["right"] <= 900.5)
    page.set_viewport_size(SIZE)
    floating.focus()
    calm.until(lambda: page.evaluate(BOX)["right"] > 900.5)
    before = page.evaluate(BOX)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    after = page.evaluate(BOX)
    assert (before["x"] - after["x"], after["y"] - before["y"]) == (16, 16)
    for bad in ("{", '"x"', "3", '{"x":"<img>","y":null}'):
        page.evaluate("(it) => localStorage.setItem('lowtide.chip.place', it)", bad)
        page.evaluate("() => window.dispatchEvent(new Event('resize'))")
        assert abs(page.evaluate(BOX)["x"] - first["x"]) < 2, bad
    page.keyboard.press("ArrowLeft")
    assert abs(page.evaluate(BOX)["x"] - first["x"]) > 8
    calm.command("Lowtide.ResetChip")
    page.wait_for_timeout(200)
    again = floating.bounding_box()
    assert again and abs(again["x"] - first["x"]) < 2 and abs(again["y"] - first["y"]) < 2
    # A click opens the panel; where ComfyUI has none beside its old menu, it says so.
    page.evaluate("() => { lowtide.chip.open = lowtide.chip.kept; }")
    floating.click()
    nowhere = calm.toasts.filter(has_text="no bottom panel")
    calm.until(lambda: panel.count() or nowhere.count())
    calm.setting("Comfy.UseNewMenu", "Top")
    waits(False)
    assert page.locator(".lowtide-floating").count() == 0
    calm.until(lambda: calm.chip.count() == 1)


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
