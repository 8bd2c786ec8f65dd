"""Cases: DynamicVRAM patchers are steered by their own interface and never hooked over.

Its driver is not here. A patcher of the core's own class stands in, whose pages record what is
asked of them.
"""

from __future__ import annotations

import gc
import sys
import weakref

import comfy.model_patcher as mp
import torch
from idle import EXPECTED, clean, encode, held
from lowtide.memory import session
from lowtide.memory.adapters.comfy import dynamic
from lowtide.memory.adapters.comfy.patchers import Budgeted
from lowtide.memory.adapters.comfy.residency import Residency, residency_of
from lowtide.memory.levels import MemoryOptimizationConfig
from paging import LEVELS, PAGE, Paged, Pages, lines, logged, optimized, paged, patcher_of
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
