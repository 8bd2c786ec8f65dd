"""Cases, on the simulated accelerator: what becomes of MODEL, CLIP and VAE, and what is said."""

from __future__ import annotations

import comfy.sd
from denoisers import patcher as denoiser
from idle import CLIP, clean, encode, held
from lowtide.memory.adapters.comfy import apply, between, learned, vae
from lowtide.memory.adapters.comfy.attention import KEY, choose
from lowtide.memory.adapters.comfy.chunking import chunk
from lowtide.memory.adapters.comfy.residency import residency_of
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.report import OptimizationReport
from small import load, lora, patcher
from vaes import IMAGE, LATENT, VAE

KINDS = ("model", "clip", "vae")


def optimized(
    level: str, given: dict[str, object] | None = None, **more: object
) -> tuple[dict[str, object], OptimizationReport]:
    config = MemoryOptimizationConfig.from_level(level, **more)
    given = given or {"model": MODEL, "clip": CLIP, "vae": VAE}
    share = apply.divide(config, **given)
    entries: list[object] = []
    found = {
        kind: getattr(apply, f"to_{kind}")(config, share, given[kind], entries) for kind in KINDS
    }
    apply.account_for_the_rest(config, entries)
    return found, OptimizationReport(config.level, "npu:0", entries)


def patcher_of(one: object) -> object:
    return getattr(one, "patcher", one)


def options(model: object) -> dict[str, object]:
    return model.model_options["transformer_options"]


def lines(report: OptimizationReport, strategy: str) -> list[str]:
    return [line for line in report.text().splitlines() if line[2:].startswith(strategy)]


MODEL = patcher()


def use(found: dict[str, object]) -> None:
    load(found["model"])
    encode(found["clip"])
    found["vae"].decode(LATENT)


def case_the_policy_reaches_every_model_at_none() -> None:
    for cleanup in ("pressure", "always"):
        found, report = optimized("none", cleanup=cleanup)
        for kind, one in found.items():
            assert residency_of(patcher_of(one)).cleanup == cleanup, kind
        (line,) = lines(report, "cleanup")
        assert line.startswith("+ cleanup (model, text encoder, vae): off the device after"), line


def case_nothing_is_left_after_a_run_at_none() -> None:
    for cleanup, left in (("off", True), ("always", False)):
        clean()
        start = held()
        found, _ = optimized("none", cleanup=cleanup)
        use(found)
        assert held() > start
        between.after_run(lambda release: None, always=False)
        assert (held() > start) is left, cleanup
    clean()


def case_the_history_is_told_the_plan_of_each_part() -> None:
    latent, made = {"samples": LATENT}, [[[[LATENT, {}]]]]
    for level, more, plan in (
        ("none", {"cleanup": "always"}, "none"),
        ("aggressive", {}, "aggressive"),
        ("balanced", {"budget_bytes": 1 << 30}, "balanced, budget_bytes=1.00 GB"),
        ("ultra", {"vae_tile_size": 128, "on_exit": False}, "ultra, vae_tile_size=128"),
    ):
        found, _ = optimized(level, **more)
        for inputs in ([found["model"], latent], [found["clip"]], [found["vae"], latent]):
            work = learned.work_of(inputs, made)
            assert work is not None and work.plan == plan, (level, work)
    assert learned.work_of([MODEL, latent], made).plan == "none"
    assert learned.work_of([lora(found["model"]), latent], made).plan == f"{plan}, patched"


def case_the_originals_carry_no_policy() -> None:
    optimized("none", cleanup="always")
    for one in (MODEL, CLIP, VAE):
        assert residency_of(patcher_of(one)) is None
    assert type(VAE) is comfy.sd.VAE


def case_without_a_policy_the_models_of_none_are_the_given_ones() -> None:
    for more in ({"cleanup": "off"}, {"cleanup": "always", "on_exit": False}):
        found, report = optimized("none", **more)
        assert (found["model"], found["clip"], found["vae"]) == (MODEL, CLIP, VAE)
        assert lines(report, "cleanup") == []


def case_a_second_node_at_none_takes_back_what_the_first_did() -> None:
    clean()
    plain = VAE.decode(LATENT).cpu()
    clean()
    start = held()
    for cleanup in ("off", "always"):
        first, _ = optimized("balanced", budget_bytes=1 << 30, enable_vae_tiling=True)
        found, _ = optimized("none", first, cleanup=cleanup)
        for kind, one in found.items():
            residency = residency_of(patcher_of(one))
            wanted = (None, None, False, cleanup)
            assert residency is not None, kind
            had = (residency.cap, residency.budget, residency.leave, residency.cleanup)
            assert had == wanted, (kind, had)
        encode(found["clip"])
        encoder = held()
        assert encoder > start  # it stays
        assert bool((found["vae"].decode(LATENT).cpu() == plain).all())
        assert held() > encoder
        plan = found["vae"].lowtide_plan
        assert (plan.config, plan.budget, plan.leave, plan.chunk) == (None, None, False, None)
        clean()


def case_a_clip_of_ours_with_another_packs_class_on_top_stays_again() -> None:
    clean()
    first, _ = optimized("balanced")
    clip = first["clip"].clone()
    clip.__class__ = type("Theirs", (type(clip),), {})
    start = held()
    found, _ = optimized("none", {**first, "clip": clip})
    encode(found["clip"])
    assert held() > start
    again, _ = optimized("balanced", {**first, "clip": found["clip"].clone()})
    encode(again["clip"])
    assert held() == start
    clean()


def case_slicing_is_honoured_and_said() -> None:
    for more, said in (
        ({}, "+ vae slicing (vae): one image at a time"),
        ({"vae_decode_chunk_size": 3}, "+ vae slicing (vae): at most 3 images at a time"),
        ({"enable_vae_tiling": False}, "+ vae slicing (vae): one image at a time"),
    ):
        found, report = optimized("balanced", **more)
        assert lines(report, "vae slicing") == [said]
        assert found["vae"].lowtide_plan.chunk == more.get("vae_decode_chunk_size", 1)
    found, report = optimized("balanced", enable_vae_slicing=False)
    assert lines(report, "vae slicing") == []
    assert found["vae"].lowtide_plan.chunk is None
    found, _ = optimized("none", enable_vae_slicing=True)
    assert found["vae"].lowtide_plan.chunk == 1


def case_a_vae_that_finds_no_room_is_as_before_and_leaves() -> None:
    clean()
    start = held()
    found, _ = optimized("balanced", budget_bytes=1 << 30)
    load(found["vae"].patcher)
    assert held() > start
    keep = vae.Turn.begin
    vae.Turn.begin = lambda _turn: 1 / 0
    try:
        for work, value in (("decode", LATENT), ("encode", IMAGE)):
            try:
                getattr(found["vae"], work)(value)
            except ZeroDivisionError:
                pass
            else:
                raise AssertionError("the failure was swallowed")
            assert found["vae"].lowtide_job is None, work
            assert held() == start, work
    finally:
        vae.Turn.begin = keep
    clean()


def case_attention_and_chunking_are_applied_at_every_level() -> None:
    more = {"attention": "sliced", "forward_chunk_size": 64}
    for level in ("none", "balanced", "aggressive", "ultra"):
        found, report = optimized(level, **more, cleanup="off")
        (line,) = lines(report, "attention")
        assert line.startswith("+ attention (model): sliced, half of the heads at once;"), line
        assert line.endswith("text encoder and VAE keep ComfyUI's choice")
        assert options(found["model"])[KEY] and KEY not in options(MODEL)
        (line,) = lines(report, "forward chunking")
        assert line.startswith("- forward chunking (model): it has no feed-forward block"), line


def case_attention_and_chunking_are_applied_under_dynamic_vram() -> None:
    one = denoiser("flux")
    one.is_dynamic = lambda: True
    config = MemoryOptimizationConfig(attention="split", forward_chunk_size=64)
    entries: list[object] = []
    clone = chunk(choose(one, config, entries), config, entries)
    assert options(clone)[KEY] and len(clone.object_patches) == 4


def case_what_a_chunked_block_holds_counts_against_the_budget() -> None:
    def streaming(**more: object) -> int:
        config = MemoryOptimizationConfig.from_level("ultra", budget_bytes=1 << 30, **more)
        entries: list[object] = []
        share = apply.divide(config, model=one, clip=None, vae=None)
        return residency_of(apply.to_model(config, share, one, entries)).streaming

    one = denoiser("flux")
    weights = 2 * 128 * 512 + 512 + 128
    assert streaming(forward_chunk_size=64) == streaming() + 4 * weights


def case_without_a_wish_the_report_names_the_cores_attention() -> None:
    _, report = optimized("balanced")
    (line,) = lines(report, "attention")
    assert line.startswith("- attention (model): auto leaves ComfyUI's own choice, "), line
    assert lines(report, "forward chunking") == []
