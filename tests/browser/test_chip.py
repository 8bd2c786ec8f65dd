"""The chip in the top bar: what it says of the figures, and that these are the server's."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.tests.browser.fakes import GB, device, state
from lowtide.tests.browser.figures import figures, short
from lowtide.tests.browser.rig import Overlay, Told

pytestmark = pytest.mark.host
FROM_NOTHING = True

STYLE = """() => { const it = getComputedStyle(document.querySelector('.lowtide-chip'));
  const image = it.backgroundImage;
  return { bars: image === 'none' ? 0 : image.split('linear-gradient').length - 1, image,
    shadow: it.boxShadow }; }"""
# Orange, red and grey of the border.
HIGH, FULL, OFFLINE = "rgb(245, 158, 11)", "rgb(239, 68, 68)", "rgb(156, 163, 175)"


def test_it_follows_a_run(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    seen = overlay.js("() => window.seen")
    live = [entry for entry in seen if entry[3] and entry[1] is not None]
    assert live, seen
    assert len({entry[1] for entry in live}) >= 2, "the figures never changed while it ran"
    for text, used, total, _ in live:
        share = f"{round(100 * used / total)}%"
        assert share in text or f"{short(used)}/{short(total)} GB" in text, (text, used, total)


def test_it_equals_the_counters(ran: tuple[Overlay, dict[str, Any]]):
    overlay, _ = ran
    counters = overlay.server.counters()
    wanted = [
        f"allocated {figures(counters['allocated'])}",
        f"reserved {figures(counters['reserved'])}",
        f"peak {figures(counters['peak_allocated'])}",
        "RAM: ",
    ]
    overlay.until(lambda: all(it in overlay.chip_tooltip() for it in wanted))
    assert "R " in overlay.chip_text()


def test_each_metric_is_hidden_by_itself(calm: Told):
    calm.tell(state(devices=[device(used=5.5)]))
    calm.setting("Lowtide.Chip.Compact", "never")

    def says(text: str, bars: int) -> None:
        calm.until(lambda: calm.chip_text() == text, 5)
        calm.until(lambda: calm.js(STYLE)["bars"] == bars, 5)

    says("VRAM 7.0/8.0 GB · RAM 12/32 GB", 2)
    tooltip = calm.chip_tooltip()
    for part in ("allocated 5.50 GB", "reserved 6.00 GB", "others 1.00 GB", "peak 6.50 GB"):
        assert part in tooltip
    steps: list[tuple[str, bool, str, int]] = [
        ("Vram", False, "RAM 12/32 GB", 1),
        ("Peak", True, "↑6.5 · RAM 12/32 GB", 1),
        ("Ram", False, "↑6.5", 0),
        ("Vram", True, "VRAM 7.0/8.0 GB · ↑6.5", 1),
        ("Bars", False, "VRAM 7.0/8.0 GB · ↑6.5", 0),
        ("Peak", False, "VRAM 7.0/8.0 GB", 0),
        ("Vram", False, "Lowtide", 0),
    ]
    for name, on, text, bars in steps:
        calm.setting(f"Lowtide.Chip.{name}", on)
        says(text, bars)
    calm.setting("Lowtide.Chip.Show", False)
    calm.until(lambda: calm.chip.count() == 0, 5)
    calm.setting("Lowtide.Chip.Show", True)
    calm.until(lambda: calm.chip.count() == 1, 5)


def test_only_percentages_where_it_is_narrow_or_wanted(calm: Told):
    calm.tell(state(devices=[device(used=5.5)]))
    short_text, long_text = "V 88% · R 38%", "VRAM 7.0/8.0 GB · RAM 12/32 GB"
    for choice, width, text in (
        ("always", 1700, short_text),
        ("never", 1280, long_text),
        ("narrow", 1280, short_text),
        ("narrow", 1700, long_text),
        ("narrow", 1280, short_text),
    ):
        calm.setting("Lowtide.Chip.Compact", choice)
        calm.page.set_viewport_size({"width": width, "height": 720})
        calm.until(lambda text=text: calm.chip_text() == text, 5)


def test_several_devices(calm: Told):
    calm.setting("Lowtide.Chip.Compact", "never")
    two = [device("cuda:0", 5.5), device("cuda:1", 12.0, 24.0), device("cpu", 1.0)]
    calm.tell(state(devices=two))
    calm.until(lambda: calm.chip_text() == "VRAM0 7.0/8.0 GB · VRAM1 14/24 GB · RAM 12/32 GB", 5)
    assert calm.js(STYLE)["bars"] == 3, "the CPU's memory is the host's"
    assert "(cuda:0)" in calm.chip_tooltip() and "(cuda:1)" in calm.chip_tooltip()
    assert "(cpu)" not in calm.chip_tooltip()
    # Of more than two the fullest, and how many there are; the tooltip has them all.
    many = [device(f"cuda:{at}", 1.0 + at, 8.0) for at in range(6)]
    calm.tell(state(devices=many))
    calm.until(lambda: calm.chip_text() == "VRAM 7.5/8.0 GB (6) · RAM 12/32 GB", 5)
    assert all(f"(cuda:{at})" in calm.chip_tooltip() for at in range(6))
    # A driver that says nothing: what this process holds.
    calm.tell(state(devices=[{**device(), **dict.fromkeys(("free", "total", "peak"))}]))
    calm.until(lambda: calm.chip_text() == "VRAM 3.5 GB · RAM 12/32 GB", 5)
    assert "peak \u2013" in calm.chip_tooltip()
    calm.tell(state(devices=[device("cpu")]))
    calm.until(lambda: calm.chip_text() == "RAM 12/32 GB", 5)


def test_the_bars_and_the_colour_of_pressure(calm: Told):
    calm.tell(state(devices=[device(used=2.5)]))
    calm.until(lambda: "0%, rgb(59, 130, 246) 31%" in calm.js(STYLE)["image"], 5)
    # 2.5 of 8 GB allocated, half a GB cached, one of others.
    image = calm.js(STYLE)["image"]
    assert "rgb(147, 197, 253) 31%, rgb(147, 197, 253) 38%" in image, image
    assert "rgb(156, 163, 175) 38%, rgb(156, 163, 175) 50%" in image, image
    for used, colour in ((4.8, None), (5.0, HIGH), (6.0, FULL), (4.8, None)):
        calm.tell(state(devices=[device(used=1.0), device("npu:1", used)]))
        calm.until(
            lambda colour=colour: (
                (colour in calm.js(STYLE)["shadow"])
                if colour
                else not any(it in calm.js(STYLE)["shadow"] for it in (HIGH, FULL))
            ),
            5,
        )
    calm.js("() => lowtide.store.disconnect()")
    calm.until(lambda: calm.chip_text() == "Lowtide: no server", 5)
    assert OFFLINE in calm.js(STYLE)["shadow"] and calm.js(STYLE)["bars"] == 0
    # The very same sample again is taken in, but not painted.
    calm.tell(state(devices=[device(used=1.0)]))
    calm.until(lambda: calm.chip_text() != "Lowtide: no server", 5)
    calm.page.wait_for_timeout(100)
    painted = calm.js("() => lowtide.chip.painted")
    for _ in range(5):
        calm.hear("sample", running=False, devices=[device(used=1.0)], host=state()["host"])
        calm.page.wait_for_timeout(40)
    assert calm.js("() => lowtide.chip.painted") == painted
    calm.hear("sample", running=False, devices=[device(used=1.2)], host=state()["host"])
    calm.until(lambda: calm.js("() => lowtide.chip.painted") > painted, 5)


def test_the_host_of_a_device_that_shares_its_memory(calm: Told):
    shared = device("mps:0", 5.0, 32.0, free=20 * GB, others=None)
    calm.setting("Lowtide.Chip.Compact", "never")
    calm.tell(state(devices=[shared]))
    calm.until(lambda: calm.chip_text() == "VRAM 12/32 GB · RAM 12/32 GB", 5)
