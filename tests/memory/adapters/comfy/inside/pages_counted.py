"""Cases: DynamicVRAM's pages in what is counted as taken."""

from __future__ import annotations

import comfy.model_management as mm
from idle import clean
from lowtide.memory import figures
from lowtide.memory.adapters import comfy as adapter
from lowtide.memory.adapters.comfy import dynamic
from paging import PAGE, aimdo, paged
from small import DEVICE, load


def case_pages_are_counted_once_a_model_and_only_on_their_device() -> None:
    clean()
    assert dynamic.pages(DEVICE) == 0
    first, second = paged(), paged()
    for one, count in ((first, 3), (second, 5)):
        one.model.pages.resident = count * PAGE
        load(one)
    assert dynamic.pages(DEVICE) == 0, "DynamicVRAM is off"
    with aimdo():
        assert dynamic.pages(DEVICE) == 8 * PAGE == adapter.outside_torch()
        assert dynamic.pages("cpu") == 0
        mm.current_loaded_models.append(mm.current_loaded_models[0])
        assert dynamic.pages(DEVICE) == 8 * PAGE
        mm.current_loaded_models.pop()
    clean()


def case_the_monitor_adds_pages_to_what_torch_counts() -> None:
    clean()
    one = paged()
    one.model.pages.resident = 4 * PAGE
    load(one)
    text, before = figures.read()
    assert before["pages"] == 0 and "DynamicVRAM" not in text
    with aimdo():
        text, found = figures.read()
    for key in ("allocated", "reserved", "pages"):
        assert found[key] == before[key] + 4 * PAGE, key
    assert found["reserved_by_others"] == max(0, before["reserved_by_others"] - 4 * PAGE)
    assert "beside DynamicVRAM's pages, now 128.0 MB" in text, text
    clean()
