"""Cases, on the simulated accelerator: sampling under a budget, measured and bit-exact."""

from __future__ import annotations

import gc

import comfy.model_management as mm
import torch
from diffusion import cond, make, sample, unload, with_loras
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import apply, measured, patchers, sampling
from lowtide.memory.adapters.comfy.residency import residency_of
from lowtide.memory.errors import BudgetError
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide_sim import current

STREAMS = int(getattr(mm, "NUM_STREAMS", 0) or 0) > 0 and hasattr(mm, "STREAM_CAST_BUFFERS")
"""Whether the core keeps buffers for streaming, two of the largest layers at most."""

MODEL = make()
BEFORE = {name: value.clone() for name, value in MODEL.model.state_dict().items()}
SIZE = int(MODEL.model_size())
DEVICE = backend.device_of(mm.get_torch_device())
EXPECTED = {count: sample(with_loras(MODEL, count)) for count in (0, 1, 5)}
unload()
assert all(found.std() > 0 for found in EXPECTED.values())
MIB = 1 << 20


def held() -> int:
    return int(backend.allocated(DEVICE) or 0)


def optimized(model, level: str = "none", **more):
    config = MemoryOptimizationConfig.from_level(level, **more)
    share = apply.divide(config, model=model, clip=None, vae=None)
    return apply.to_model(config, share, model, [])


def budgeted(model, budget: int):
    return optimized(model, budget_bytes=budget)


def peak_of(model, **more) -> tuple[int, torch.Tensor]:
    current().reset_peaks()
    found = sample(model, **more)
    return current().peak_allocated, found


def resident_in(model) -> list[int]:
    """Bytes of weights resident at the begin of every step."""
    found = []

    def note(executor, base_model, *args):
        found.append(int(base_model.current_patcher.loaded_size()))
        return executor(base_model, *args)

    model.add_wrapper_with_key("calc_cond_batch", "test", note)
    return found


class Batches:
    """Counts of conds in one batch, as the model sees them."""

    def __init__(self, model) -> None:
        self.seen: list[int] = []

        def note(apply_model, given):
            self.seen.append(len(given["cond_or_uncond"]))
            return apply_model(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(note)


def clean() -> None:
    unload()
    measured.forget_all()
    now = MODEL.model.state_dict()
    assert all(torch.equal(BEFORE[name], now[name].cpu()) for name in BEFORE)
    assert MODEL.model not in patchers._targets
    assert "memory_required" not in vars(MODEL.model)


def case_every_budget_is_kept_and_changes_no_bit_or_is_refused() -> None:
    for count in (0, 1, 5):
        model = with_loras(MODEL, count)
        # The smallest share: positive and negative prompt fit in one batch, or it is refused.
        least = (45 if count else 38) if STREAMS else 20
        for percent in {0: (least, 100), 1: (55,), 5: (least,)}[count]:
            clean()
            budget = SIZE * percent // 100
            try:
                clone = budgeted(model, budget)
                for prompt in range(2):
                    peak, found = peak_of(clone)
                    assert peak <= budget, (count, percent, prompt, peak / budget)
                    assert torch.equal(found, EXPECTED[count]), (count, percent, prompt)
            except BudgetError:
                assert percent == least, "more than a step needs was refused"
            assert held() == 0
    clean()


def case_a_refusal_names_a_budget_that_will_do() -> None:
    for count in (0, 5):
        clean()
        model = with_loras(MODEL, count)
        budget = SIZE // 14
        named = None
        for _ in range(3):
            try:
                peak, _ = peak_of(budgeted(model, budget))
                break
            except BudgetError as error:
                named = str(error).split("at least ")[1].split(" GB")[0]
                budget = int(float(named) * (1 << 30))
            assert held() == 0
        assert named is not None, "nothing was refused"
        assert peak <= budget
        # And it is the smallest one, to what the widget can say.
        assert peak > budget - 1.1 * (1 << 30) / 1000 or count, (peak, budget)
    clean()


def case_the_first_prompt_fills_the_budget_after_a_step_and_the_second_at_once() -> None:
    clean()
    clone = budgeted(MODEL, SIZE * 3 // 5)
    seen = resident_in(clone)
    first, _ = peak_of(clone)
    begun, grown = seen[0], seen[1]
    assert grown > begun + SIZE // 10, (begun, grown)
    seen.clear()
    second, _ = peak_of(clone)
    assert min(seen) > begun + SIZE // 10, seen
    assert max(first, second) <= SIZE * 3 // 5
    clean()


def case_a_budget_that_holds_everything_batches_and_loads_as_ever() -> None:
    clean()
    clone = budgeted(MODEL, 1 << 30)
    batches, seen = Batches(clone), resident_in(clone)
    assert torch.equal(sample(clone), EXPECTED[0])
    assert set(batches.seen) == {2}
    assert set(seen) == {SIZE}
    clean()


def case_conds_share_a_batch_where_that_fits_and_not_where_it_does_not() -> None:
    clean()
    clone = budgeted(MODEL, SIZE * 2 // 5 if STREAMS else SIZE // 5)
    batches = Batches(clone)
    peak_of(clone)
    assert batches.seen == [1, 1, 2, 2, 2], "tried singly once, then as without a budget"
    batches.seen.clear()
    peak_of(clone)
    assert batches.seen == [2, 2, 2]
    clean()
    small = SIZE // 5 if STREAMS else SIZE // 10
    clone = budgeted(MODEL, small)
    batches = Batches(clone)
    for expected in ([1] * 6, [1] * 6):
        batches.seen.clear()
        peak, _ = peak_of(clone)
        assert batches.seen == expected, batches.seen
        assert peak <= small
    clean()


def case_a_larger_image_is_measured_anew() -> None:
    clean()
    budget = SIZE * (9 if STREAMS else 7) // 10
    clone = budgeted(MODEL, budget)
    for size in (16, 24, 16, 32):
        peak, found = peak_of(clone, size=size)
        assert peak <= budget, (size, peak / budget)
        unload()
        assert torch.equal(found, sample(MODEL, size=size)), size
        unload()
    clean()


def case_conds_that_join_in_the_middle_are_measured_before_they_are_trusted() -> None:
    clean()
    budget = SIZE // 2
    late = [[cond(3)[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    positive = [*cond(1), *late]
    expected = sample(MODEL, positive=positive)
    unload()
    peak, found = peak_of(budgeted(MODEL, budget), positive=positive)
    assert peak <= budget, peak / budget
    assert torch.equal(found, expected)
    clean()


def case_other_models_give_way() -> None:
    clean()
    other = make()
    mm.load_models_gpu([other])
    assert held() > SIZE * 0.9
    _, found = peak_of(budgeted(MODEL, SIZE // 2))
    assert torch.equal(found, EXPECTED[0])
    assert other.loaded_size() == 0
    assert held() == 0
    clean()


def case_an_error_in_the_middle_leaves_nothing_behind() -> None:
    clean()
    clone = budgeted(MODEL, SIZE // 2)

    def fail(apply_model, given):
        raise ZeroDivisionError

    clone.set_model_unet_function_wrapper(fail)
    try:
        sample(clone)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the error was swallowed")
    gc.collect()
    assert not hasattr(clone, "lowtide_run") and clone.lowtide_room is None
    assert MODEL.loaded_size() == 0
    clean()


def case_the_model_leaves_after_sampling_at_every_level_but_none() -> None:
    for level in ("none", "balanced", "aggressive", "ultra"):
        clean()
        clone = optimized(MODEL, level, fp8_storage=False)
        found = sample(clone)
        assert (held() > 0) is (level == "none"), level
        assert torch.equal(found, EXPECTED[0]), level
    clean()


def case_aggressive_keeps_a_quarter_and_less_where_little_is_free() -> None:
    clean()
    clone = optimized(MODEL, "aggressive")
    seen = resident_in(clone)
    sample(clone)
    assert min(seen) > SIZE // 8 and max(seen) <= SIZE // 4, seen
    unload()
    free = mm.get_free_memory
    short = int(mm.minimum_inference_memory()) + SIZE // 8
    mm.get_free_memory = lambda *args, **kwargs: (
        (short, short) if kwargs.get("torch_free_too") else short
    )
    seen.clear()
    try:
        clone.partially_load(clone.load_device, 1e30)
        assert 0 < clone.loaded_size() <= SIZE // 8, clone.loaded_size()
    finally:
        mm.get_free_memory = free
        clone.detach()
    clean()


def case_the_last_of_two_nodes_counts() -> None:
    clean()
    first = optimized(MODEL, "ultra", fp8_storage=False)
    second = optimized(first, "none")
    residency = residency_of(second)
    assert residency is not None and residency.cap is None and not residency.leave, residency
    assert torch.equal(sample(second), EXPECTED[0])
    assert second.loaded_size() == SIZE, "the first node's cap is still kept"
    assert residency_of(first).cap == 0
    clean()


def case_without_a_budget_nothing_is_wrapped_but_the_leaving() -> None:
    assert optimized(MODEL, "none").wrappers == MODEL.wrappers
    kinds = set(optimized(MODEL, "balanced").wrappers) - set(MODEL.wrappers)
    assert kinds == {"outer_sample"}
    kinds = set(budgeted(MODEL, SIZE).wrappers) - set(MODEL.wrappers)
    assert kinds == {"outer_sample", "prepare_sampling", "calc_cond_batch"}


def case_wrappers_are_plain_functions() -> None:
    """Older cores deep-copy options: what holds a patcher would be copied with its weights."""
    clone = budgeted(MODEL, SIZE)
    for kind in ("outer_sample", "prepare_sampling", "calc_cond_batch"):
        (wrapper,) = clone.wrappers[kind][sampling._WRAPPER]
        assert wrapper.__closure__ is None
