"""Cases: DynamicVRAM patchers are steered by their own interface and never hooked over.

Its driver is not here. A patcher of the core's own class stands in, whose pages record what is
asked of them; where ComfyUI has the dynamic patcher, its real load runs over recording pages.
"""

from __future__ import annotations

import gc
import inspect
import sys
import unittest
import weakref
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher as mp
import torch
from idle import EXPECTED, clean, encode, held
from lowtide.memory import figures, session
from lowtide.memory.adapters import comfy as adapter
from lowtide.memory.adapters.comfy import dynamic
from lowtide.memory.adapters.comfy.patchers import Budgeted, Residency, residency_of
from lowtide.memory.levels import MemoryOptimizationConfig
from paging import LEVELS, PAGE, Paged, Pages, aimdo, lines, logged, optimized, paged, patcher_of
from small import CPU, DEVICE, Model, load, lora, restored, run, weights
from vaes import IMAGE, LATENT


def case_the_limit_is_set_again_after_every_load_in_whole_pages() -> None:
    clean()
    one = dynamic.limited(paged(), Residency(cap=3 * PAGE + 5))
    pages = one.model.pages
    for _ in range(3):
        load(one)
        assert pages.asked == ["prioritize", 3 * PAGE], pages.asked
        clean()
        pages.asked.clear()


def case_a_limit_below_one_page_streams_everything() -> None:
    clean()
    one = dynamic.limited(paged(), Residency(cap=PAGE - 1))
    load(one)
    assert one.model.pages.asked[-1] == 0
    clean()


def case_the_limit_survives_clones_and_a_lora_and_is_set_once() -> None:
    clean()
    one = dynamic.limited(dynamic.limited(paged(), Residency(cap=PAGE)), Residency(cap=2 * PAGE))
    for clone in (one, one.clone(), lora(one).clone()):
        clean()
        clone.model.pages.asked.clear()
        load(clone)
        assert clone.model.pages.asked.count(2 * PAGE) == 1, clone.model.pages.asked
        assert PAGE not in clone.model.pages.asked
    clean()


def case_the_original_has_no_limit() -> None:
    clean()
    base = paged()
    before = weights(base)
    plain = run(base)
    clean()
    assert torch.equal(run(dynamic.limited(base, Residency(cap=0))), plain)
    clean()
    base.model.pages.asked.clear()
    load(base)
    assert base.model.pages.asked == ["prioritize"]
    assert residency_of(base) is None
    clean()
    assert restored(base, before)


def case_a_failing_library_is_logged_and_the_load_goes_on() -> None:
    clean()

    class Broken(Pages):
        def set_watermark(self, size: int) -> None:
            raise OSError("driver")

    base = paged(Broken())
    plain = run(base)
    clean()
    with logged() as records:
        assert torch.equal(run(dynamic.limited(base, Residency(cap=PAGE))), plain)
    assert [record.exc_info[0] for record in records] == [OSError]
    clean()


def case_a_library_without_the_limit_is_left_alone_and_said() -> None:
    clean()
    one = dynamic.limited(paged(object()), Residency(cap=PAGE))
    assert not dynamic.can_limit(one)
    assert one.callbacks == one.wrappers == {}
    with logged() as records:
        load(one)
        assert records == []
        dynamic.limit_pages(one)
    assert "left to ComfyUI" in records[0].getMessage(), records
    (said,) = dynamic.outcome(one, Residency(cap=PAGE), "model", None)
    assert said.reason.startswith("left to ComfyUI"), said
    clean()


def case_a_static_clone_of_a_limited_one_is_let_be() -> None:
    clean()
    one = dynamic.limited(paged(), Residency(cap=PAGE))
    one.__class__ = mp.ModelPatcher
    with logged() as records:
        load(one)
    assert one.model.pages.asked == records == []
    clean()


def case_a_limited_clone_keeps_nothing_alive() -> None:
    clean()
    base = paged()
    one = dynamic.limited(base, Residency(cap=PAGE, budget=1 << 30))
    load(one)
    clean()
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(one), weakref.ref(base.model)
        del one, base
        assert alive[0]() is None and alive[1]() is None
    finally:
        gc.enable()


def case_no_level_changes_a_class_a_type_or_a_weight() -> None:
    for level in LEVELS:
        for more in ({}, {"budget_bytes": 1 << 30}, {"fp8_storage": True}):
            clean()
            given, found, _ = optimized(level, **more)
            for kind, one in found.items():
                patcher, original = patcher_of(one), patcher_of(given[kind])
                assert type(patcher) is type(original) is Paged, (level, more, kind)
                assert not isinstance(patcher, Budgeted)
                assert patcher.object_patches == original.object_patches, (level, more, kind)
                assert patcher.model is original.model
                assert all(weight.itemsize > 1 for weight in patcher.model.parameters())


def case_a_level_and_a_budget_set_the_limit() -> None:
    for level, more, expected in (
        ("ultra", {}, 0),
        ("none", {"budget_bytes": 5 * PAGE}, 4 * PAGE),  # a layer is streamed beside them
    ):
        clean()
        _, found, report = optimized(level, **more)
        load(found["model"])
        assert found["model"].model.pages.asked[-1] == expected, (level, more)
        (line,) = [line for line in lines(report, "resident cap") if "(model)" in line]
        assert line.startswith("+ resident cap (model): at most "), line
        assert "set again after every load" in line
        assert any("(model" in line for line in lines(report, "budget")) is bool(more), level
    clean()


def case_a_budget_says_what_it_does_not_hold() -> None:
    _, _, report = optimized("balanced", budget_bytes=1 << 30)
    said = "\n".join(lines(report, "budget"))
    assert "- budget (model, text encoder): held for pages of weights only" in said, said
    assert "- budget (vae): its tiles follow the budget" in said, said
    _, _, report = optimized("balanced")
    assert lines(report, "budget") == []


def case_what_is_computed_is_set_aside_from_a_budget() -> None:
    clean()
    base = paged()
    base.model.activations = 3 * PAGE
    one = dynamic.limited(base, Residency(budget=10 * PAGE))
    load(one)
    assert base.model.pages.asked[-1] == 10 * PAGE
    clean()
    went = dynamic.note_activations(lambda *given: given, one, [1, 4, 8, 8], {}, "rest")
    assert went == (one, [1, 4, 8, 8], {}, "rest")
    load(one)
    assert base.model.pages.asked[-1] == 7 * PAGE
    clean()


def case_the_cleanup_policy_reaches_every_model() -> None:
    for level in LEVELS:
        _, found, _ = optimized(level, cleanup="always")
        for kind, one in found.items():
            if kind != "vae" or level == "none":  # else it leaves whenever it is done
                assert residency_of(patcher_of(one)).cleanup == "always", (level, kind)


def case_text_encoder_and_vae_leave_and_tile_as_static_ones() -> None:
    clean()
    start = held()
    _, found, report = optimized("balanced")
    assert torch.equal(encode(found["clip"]), EXPECTED)
    assert held() == start
    found["vae"].decode(LATENT)
    found["vae"].encode(IMAGE)
    assert held() == start
    (line,) = lines(report, "leave when idle")[:1]
    assert line.startswith("+ leave when idle"), line
    assert any(line.startswith("+ ") for line in lines(report, "exact vae tiling"))
    clean()


def case_the_report_says_what_is_left_to_the_core() -> None:
    config = MemoryOptimizationConfig.from_level("aggressive")
    text = session.optimize_native(config, model=paged()).report.text()
    assert "DynamicVRAM places the weights of model" in text, text
    assert "not seen on a GPU" in text
    known = hasattr(sys.modules["comfy.cli_args"].args, "disable_dynamic_vram")
    assert ("--disable-dynamic-vram" in text) is known
    assert ("second copy in RAM" in text) is known
    assert ("fails for models that, as here," in text) is known
    plain = mp.ModelPatcher(Model(), DEVICE, CPU)
    assert "DynamicVRAM" not in session.optimize_native(config, model=plain).report.text()


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


def case_the_real_dynamic_patcher_takes_the_limit_after_prioritising() -> None:
    if not hasattr(mp, "ModelPatcherDynamic"):
        raise unittest.SkipTest("this ComfyUI has no ModelPatcherDynamic")
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar

    class HostBuffer:
        def __init__(self, *_: object, **__: object) -> None:
            self.size = 0

    clean()
    kept = comfy_aimdo.host_buffer.HostBuffer, comfy_aimdo.model_vbar.ModelVBAR
    comfy_aimdo.host_buffer.HostBuffer, comfy_aimdo.model_vbar.ModelVBAR = HostBuffer, Pages
    try:
        base = mp.ModelPatcherDynamic(Model(), DEVICE, CPU)
        mm.archive_model_dtypes(base.model)
        assert dynamic.can_limit(base), "before the first load there are no pages to ask"
        one = dynamic.limited(base, Residency(cap=2 * PAGE + 1))
        assert type(one) is mp.ModelPatcherDynamic
        for clone in (one, one, one.clone(), lora(one)):
            mm.load_models_gpu([clone])
            assert clone._vbar_get().asked == ["prioritize", 2 * PAGE], clone._vbar_get().asked
            clone._vbar_get().asked.clear()
        mm.load_models_gpu([base])
        assert base._vbar_get().asked == ["prioritize"]
        clean()
    finally:
        comfy_aimdo.host_buffer.HostBuffer, comfy_aimdo.model_vbar.ModelVBAR = kept


def case_the_installed_library_offers_what_is_called() -> None:
    try:
        import comfy_aimdo.control
        import comfy_aimdo.model_vbar
    except ImportError as missing:
        raise unittest.SkipTest(f"comfy-aimdo is not installed here: {missing}") from missing
    kind = comfy_aimdo.model_vbar.ModelVBAR

    def takes(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert takes(kind.set_watermark) == ["self", "size_bytes"]
    assert takes(kind.loaded_size) == ["self"]
    assert takes(kind.prioritize)[0] == "self"
    assert takes(comfy_aimdo.control.get_total_vram_usage) == []
    (native,) = [
        found.read_bytes()
        for found in Path(comfy_aimdo.__path__[0]).iterdir()
        if found.name in ("aimdo.so", "aimdo.dll")
    ]
    for symbol in (b"vbar_set_watermark\0", b"vbar_loaded_size\0", b"vbar_prioritize\0"):
        assert symbol in native, symbol
    source = inspect.getsource(comfy_aimdo.model_vbar)
    assert "32 << 20" in source and dynamic.PAGE == 32 << 20
