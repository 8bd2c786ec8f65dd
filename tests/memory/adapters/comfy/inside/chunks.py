"""Cases: feed-forward blocks that work on some tokens at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import comfy.model_management as mm
import torch
from denoisers import (
    CPU,
    DEVICE,
    FAMILIES,
    distance,
    forward,
    load,
    patcher,
    peak_of,
    run,
    unload,
)
from lowtide.memory.adapters.comfy import chunking
from lowtide.memory.adapters.comfy.chunking import Chunked, chunk, held_bytes
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.strategies.base import Applied, Skipped

MIB = 1 << 20
ON_CPU = DEVICE == CPU
BLOCKS = {"unet": 7, "flux": 4, "sd3": 3}
"""Feed-forward blocks of each family; SD3's last text block has none."""
FIRST = {
    "unet": "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff",
    "flux": "diffusion_model.double_blocks.0.img_mlp",
    "sd3": "diffusion_model.joint_blocks.0.x_block.mlp",
}
LEAVES = {"unet": "net.2", "flux": "2", "sd3": "fc2"}


def chunked(one: object, size: int = 100) -> tuple[object, list[object]]:
    entries: list[object] = []
    config = MemoryOptimizationConfig.from_level("none", forward_chunk_size=size)
    return chunk(one, config, entries), entries


def key(family: str) -> str:
    return f"{FIRST[family]}.{LEAVES[family]}.weight"


def lora(one: object, family: str) -> object:
    weight = one.model.state_dict()[key(family)]
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05
    clone = one.clone()
    assert clone.add_patches({key(family): ("diff", (delta,))}, 1.0)
    return clone


def attributes(model: torch.nn.Module) -> dict[str, list[str]]:
    """What each module of a model has of its own, and of what class it is."""
    return {
        name: [type(module).__name__, *sorted(vars(module))]
        for name, module in model.named_modules()
    }


def moved(work: Callable[[], object]) -> int:
    from lowtide_sim import current

    current().reset_counters()
    work()
    return current().counters()["h2d"]


class Widest:
    """Notes the most tokens that reached a block's own layers at once."""

    def __init__(self, model: torch.nn.Module, family: str) -> None:
        self.layer = model.get_submodule(f"{FIRST[family]}.{LEAVES[family]}")
        self.tokens = self.calls = 0

    def __enter__(self) -> Widest:
        self.handle = self.layer.register_forward_pre_hook(self._note)
        return self

    def _note(self, _layer: object, inputs: tuple[torch.Tensor, ...]) -> None:
        self.calls += 1
        self.tokens = max(self.tokens, inputs[0][..., 0].numel())

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def case_chunks_give_the_same_in_every_family() -> None:
    for family in FAMILIES:
        base = patcher(family)
        plain = run(base, family)
        for size in (1000, 100, 37):
            clone, _ = chunked(base, size)
            load(clone)
            with Widest(base.model, family) as widest:
                assert distance(forward(clone, family), plain) < 1e-5, (family, size)
            assert widest.tokens == size and widest.calls == -(-2048 // size), family
        assert torch.equal(run(base, family), plain)
        unload()


def case_half_precision_is_within_its_rounding() -> None:
    for family in FAMILIES:
        for dtype in (torch.bfloat16, torch.float16):
            base = patcher(family, dtype)
            plain = run(base, family)
            assert distance(run(chunked(base)[0], family), plain) < 4 * torch.finfo(dtype).eps
            unload()


def case_what_was_done_is_said() -> None:
    for family in FAMILIES:
        _, entries = chunked(patcher(family))
        (done,) = [entry for entry in entries if isinstance(entry, Applied)]
        assert done.detail == f"100 tokens at a time through {BLOCKS[family]} feed-forward blocks"
        left = [entry.reason for entry in entries if isinstance(entry, Skipped)]
        fused = ["1 blocks compute it in one layer with the attention: they stay whole"]
        assert left == (fused if family == "flux" else [])
    assert chunk(base := patcher("unet"), MemoryOptimizationConfig(), []) is base


def case_paths_of_parameters_stay() -> None:
    for family in FAMILIES:
        base = patcher(family)
        before = list(base.model.state_dict())
        clone, _ = chunked(base)
        load(clone)
        assert isinstance(base.model.get_submodule(FIRST[family]), Chunked)
        assert list(base.model.state_dict()) == before
        assert clone.model_size() == base.model_size()
        unload()


def case_a_lora_counts_once_in_either_order() -> None:
    for family in FAMILIES:
        base = patcher(family)
        expected = run(lora(base, family), family)
        assert distance(expected, run(base, family)) > 1e-4
        capped = with_residency(lora(base, family), Residency(cap=0))
        streamed = run(capped, family)
        for one in (chunked(lora(base, family))[0], lora(chunked(base)[0], family)):
            assert distance(run(one, family), expected) < 1e-5, family
            capped = with_residency(one, Residency(cap=0))
            assert distance(run(capped, family), streamed) < 1e-5, family
        unload()


def case_unloading_leaves_nothing_behind() -> None:
    for family in FAMILIES:
        base = patcher(family)
        for cap in (None, 0):
            run(with_residency(lora(base, family), Residency(cap=cap)), family)
            unload()
        before = attributes(base.model)
        weights = {name: value.clone() for name, value in base.model.state_dict().items()}
        blocks = dict(base.model.named_modules())
        for cap in (None, 0):
            clone, _ = chunked(lora(base, family))
            run(with_residency(clone, Residency(cap=cap)), family)
            unload()
            now = base.model.state_dict()
            assert all(torch.equal(weights[name], now[name].cpu()) for name in weights)
            assert all(blocks[name] is block for name, block in base.model.named_modules())
            assert attributes(base.model) == before, family


def case_chunks_keep_no_model_alive() -> None:
    gc.disable()
    try:
        for family in FAMILIES:
            base = patcher(family)
            clone, _ = chunked(base)
            run(with_residency(clone, Residency(cap=0)), family)
            unload()
            model = weakref.ref(base.model)
            block = weakref.ref(base.model.get_submodule(FIRST[family]))
            del base, clone
            assert model() is None and block() is None, family
    finally:
        gc.enable()


def case_the_peak_is_lower() -> None:
    if ON_CPU:
        return
    for family in FAMILIES:
        base = patcher(family)
        clone, _ = chunked(base, 128)
        peaks = {}
        for name, one in (("whole", base), ("chunked", clone)):
            load(one)
            peaks[name] = peak_of(partial(_feed, one, family))
        print("peaks", family, {name: f"{size / MIB:.2f} MiB" for name, size in peaks.items()})
        width = {"unet": 8 * 64, "flux": 4 * 128, "sd3": 4 * 128}[family]
        hidden = 2048 * width * 4
        assert peaks["whole"] > hidden and peaks["chunked"] < peaks["whole"] - 0.8 * hidden, peaks
        unload()


def _feed(one: object, family: str) -> torch.Tensor:
    width = 64 if family == "unet" else 128
    x = torch.randn(2, 1024, width, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with torch.inference_mode():
        return one.model.get_submodule(FIRST[family])(x)


def case_streamed_weights_are_moved_once_for_all_chunks() -> None:
    if ON_CPU:
        return
    for family in FAMILIES:
        base = patcher(family)
        whole = with_residency(base, Residency(cap=0))
        load(whole)
        expected = moved(partial(forward, whole, family))
        clone, _ = chunked(base, 50)
        streamed = with_residency(clone, Residency(cap=0))
        load(streamed)
        found = moved(partial(forward, streamed, family))
        print("peaks", family, f"{expected / MIB:.2f} MiB moved whole, {found / MIB:.2f} in chunks")
        assert found == expected
        unload()


def case_held_weights_are_given_back_and_are_no_more_than_said() -> None:
    if ON_CPU:
        return
    for family in FAMILIES:
        base = lora(patcher(family), family)
        clone, _ = chunked(base, 50)
        streamed = with_residency(clone, Residency(cap=0))
        load(streamed)
        block = base.model.get_submodule(FIRST[family])
        layer = block.get_submodule(LEAVES[family])
        parameters, functions = dict(layer._parameters), layer.weight_function
        assert layer.comfy_cast_weights and functions
        for fails in (False, True):
            x = torch.zeros(1, 64, 64 if family == "unet" else 128).to(DEVICE)
            from lowtide_sim import current

            held = current().allocated
            try:
                with torch.inference_mode(), chunking.streamed_once(block, x):
                    assert layer.weight.device == DEVICE and not layer.weight_function
                    assert 0 < current().allocated - held <= held_bytes(clone)
                    if fails:
                        raise mm.OOM_EXCEPTION("none left")
            except mm.OOM_EXCEPTION:
                assert fails
            assert layer.weight is parameters["weight"] and layer.bias is parameters["bias"]
            assert layer.weight_function is functions
            assert current().allocated == held
        unload()
    assert held_bytes(patcher("unet")) == 0


def case_weights_of_other_types_are_not_held() -> None:
    base = patcher("flux")
    clone, _ = chunked(base, 50)
    load(clone)
    block = base.model.get_submodule(FIRST["flux"])
    with chunking.streamed_once(block, torch.zeros(1, device="meta")):
        assert all(weight.device != torch.device("meta") for weight in block.parameters())
    unload()


def case_a_second_lowtide_node_sets_another_size() -> None:
    base = patcher("flux")
    first, _ = chunked(base, 1000)
    second, entries = chunked(first, 50)
    assert [entry for entry in entries if isinstance(entry, Applied)]
    for one, tokens in ((first, 1000), (second, 50), (first, 1000)):
        load(one)
        with Widest(base.model, "flux") as widest:
            forward(one, "flux")
        assert widest.tokens == tokens
    unload()


def case_a_clone_made_while_another_is_loaded_chunks_the_same_blocks() -> None:
    base = patcher("flux")
    plain = run(base, "flux")
    first, _ = chunked(base, 1000)
    load(first)
    second, _ = chunked(base, 50)
    assert distance(run(second, "flux"), plain) < 1e-5
    unload()
    assert not [one for one in base.model.modules() if isinstance(one, Chunked)]
