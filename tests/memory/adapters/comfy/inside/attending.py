"""Cases: the attention of one model, chosen by Lowtide."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import torch
from comfy.ldm.modules import attention as core
from denoisers import CPU, DEVICE, FAMILIES, distance, forward, load, patcher, peak_of, run, unload
from lowtide.memory.adapters.comfy.attention import KEY, choose, core_choice
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.strategies.base import Applied, Skipped

MIB = 1 << 20
ON_CPU = DEVICE == CPU


def config(kind: str, **more: object) -> MemoryOptimizationConfig:
    return MemoryOptimizationConfig.from_level("none", attention=kind, **more)


def chosen(one: object, kind: str, **more: object) -> tuple[object, object]:
    entries: list[object] = []
    clone = choose(one, config(kind, **more), entries)
    (entry,) = entries
    return clone, entry


def options(one: object) -> dict[str, object]:
    return one.model_options["transformer_options"]


def basic(_stock: object, *args: object, **kwargs: object) -> torch.Tensor:
    return core.attention_basic(*args, **kwargs)


class Counted:
    """Counts the calls of one of the core's kernels."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def __enter__(self) -> Counted:
        self.stock = core.REGISTERED_ATTENTION_FUNCTIONS.get(self.name)
        inner = self.stock or core.attention_basic

        def counted(*args: object, **kwargs: object) -> torch.Tensor:
            assert kwargs["_inside_attn_wrapper"]
            self.calls += 1
            return inner(*args, **kwargs)

        core.REGISTERED_ATTENTION_FUNCTIONS[self.name] = counted
        return self

    def __exit__(self, *_: object) -> None:
        if self.stock is None:
            del core.REGISTERED_ATTENTION_FUNCTIONS[self.name]
        else:
            core.REGISTERED_ATTENTION_FUNCTIONS[self.name] = self.stock


def case_each_kernel_is_the_models_and_gives_the_same() -> None:
    kinds = (
        ("pytorch", "pytorch"),
        ("sub-quadratic", "sub_quad"),
        ("split", "split"),
        ("xformers", "xformers"),
    )
    for family in FAMILIES:
        base = patcher(family)
        plain = run(base, family)
        for kind, name in kinds:
            with Counted(name) as count:
                clone, entry = chosen(base, kind)
                assert isinstance(entry, Applied), entry
                assert entry.detail.startswith(f"ComfyUI's {kind} kernel; text encoder and VAE")
                assert distance(run(clone, family), plain) < 1e-5, (family, kind)
                calls = count.calls
                assert calls > 0, (family, kind)
                run(base, family)
                assert count.calls == calls
        unload()


def case_slices_give_the_same_in_every_family() -> None:
    for family in FAMILIES:
        base = patcher(family)
        plain = run(base, family)
        for size in ("auto", "max", 3):
            clone, entry = chosen(base, "sliced", attention_slice_size=size)
            assert isinstance(entry, Applied) and entry.detail.startswith("sliced, "), entry
            found = run(clone, family)
            assert not torch.equal(found, plain), family
            assert distance(found, plain) < 1e-5, (family, size)
        unload()


def case_slices_in_half_precision_are_as_near_as_torchs_kernel() -> None:
    for family in FAMILIES:
        exact = run(patcher(family), family)
        unload()
        for dtype in (torch.bfloat16, torch.float16):
            base = patcher(family, dtype)
            stock = distance(run(chosen(base, "pytorch")[0], family), exact)
            sliced = distance(run(chosen(base, "sliced")[0], family), exact)
            assert sliced < 1.1 * stock, (family, dtype, sliced, stock)
            unload()


def case_slices_lower_the_peak_of_unfused_attention() -> None:
    if ON_CPU:
        return
    for family in FAMILIES:
        base = patcher(family)
        unfused = base.clone()
        unfused.model_options["transformer_options"][KEY] = basic
        sliced, _ = chosen(base, "sliced", attention_slice_size="max")
        stock, _ = chosen(base, "pytorch")
        peaks = {}
        for name, one in (("unfused", unfused), ("sliced", sliced), ("pytorch", stock)):
            load(one)
            peaks[name] = peak_of(partial(forward, one, family))
        print("peaks", family, {name: f"{size / MIB:.1f} MiB" for name, size in peaks.items()})
        scores = 2 * 4 * 1024 * 1024 * 4 // (2 if family == "sd3" else 1)
        assert peaks["sliced"] < peaks["unfused"] - scores, (family, peaks)
        unload()


def case_auto_leaves_the_cores_choice_and_names_it() -> None:
    base = patcher("unet")
    clone, entry = chosen(base, "auto")
    assert clone is base
    assert isinstance(entry, Skipped)
    assert entry.reason == f"auto leaves ComfyUI's own choice, {core_choice()}"
    assert getattr(core, f"attention_{core_choice()}") is core.optimized_attention


def case_another_nodes_choice_stays() -> None:
    def theirs(_stock: object, *args: object, **kwargs: object) -> torch.Tensor:
        return core.attention_pytorch(*args, **kwargs)

    theirs.__module__ = "custom_nodes.sage"
    base = patcher("unet")
    options(base)[KEY] = theirs
    for kind in ("auto", "pytorch", "sliced"):
        clone, entry = chosen(base, kind)
        assert clone is base and options(base)[KEY] is theirs
        assert isinstance(entry, Skipped), entry
        assert entry.reason.startswith("another node chose this model's attention (custom_nodes.s")
    if hasattr(base, "set_model_optimized_attention"):
        one = patcher("unet")
        one.set_model_optimized_attention(core.attention_split)
        assert chosen(one, "sliced")[0] is one


def case_a_second_lowtide_node_has_the_last_word() -> None:
    first, _ = chosen(patcher("unet"), "split")
    second, entry = chosen(first, "sliced")
    assert isinstance(entry, Applied)
    assert options(second)[KEY] is not options(first)[KEY]
    kept, entry = chosen(second, "auto")
    assert kept is second
    assert entry.reason == "an earlier Lowtide node chose sliced: it stays"


def case_xformers_that_is_not_there_is_skipped_with_the_remedy() -> None:
    base = patcher("unet")
    clone, entry = chosen(base, "xformers")
    assert clone is base and isinstance(entry, Skipped), entry
    assert entry.reason.startswith("xformers is ") and "choose auto or pytorch" in entry.reason
    assert "install" in entry.reason


def case_clones_of_the_clone_keep_the_choice_and_the_base_has_none() -> None:
    base = patcher("unet")
    clone, _ = chosen(base, "sliced")
    assert KEY not in options(base)
    assert options(clone.clone())[KEY] is options(clone)[KEY]
    assert copy.deepcopy(clone.model_options)["transformer_options"][KEY] is options(clone)[KEY]


def case_a_choice_keeps_no_model_alive() -> None:
    gc.disable()
    try:
        base = patcher("unet")
        clone, _ = chosen(base, "sliced")
        run(clone, "unet")
        unload()
        model = weakref.ref(base.model)
        del base, clone
        assert model() is None
    finally:
        gc.enable()


def case_calls_with_containers_are_served() -> None:
    if not hasattr(core, "AttentionTensorContainer"):
        return
    q, k, v = (torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))
    expected = core.attention_pytorch(q, k, v, 4)
    clone, _ = chosen(patcher("unet"), "sliced")
    held = [core.AttentionTensorContainer(each) for each in (q, k, v)]
    found = core.optimized_attention(*held, 4, transformer_options=options(clone))
    assert distance(found, expected) < 1e-5
