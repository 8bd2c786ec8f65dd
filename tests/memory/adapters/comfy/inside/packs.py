"""Cases: packs that change what Lowtide changes.

Stand-ins override the methods the packs override, with the same signatures and effects.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import comfy.model_patcher as mp
import torch
from comfy.patcher_extension import WrappersMP
from foreign import (
    Engine,
    GGUFModelPatcher,
    Mover,
    Plain,
    gguf,
    plain,
    with_inner,
)
from lowtide.memory import session
from lowtide.memory.adapters.comfy import compatibility, limits
from lowtide.memory.adapters.comfy.compatibility import left_alone
from lowtide.memory.adapters.comfy.patchers import Budgeted, with_residency
from lowtide.memory.adapters.comfy.residency import Residency, residency_of
from lowtide.memory.levels import MemoryOptimizationConfig
from small import CPU, DEVICE, Model, close, forward, load, lora, restored, unload, weights


def report(level: str = "ultra", patcher: object = None, **more: object):
    config = MemoryOptimizationConfig.from_level(level, **more)
    return session.optimize_native(config, model=plain() if patcher is None else patcher)


def notes(patcher: mp.ModelPatcher) -> str:
    return "\n".join(compatibility.notes({"model": patcher}))


def case_a_gguf_model_keeps_its_cap_and_its_images() -> None:
    base = gguf()
    before = weights(base)
    load(base)
    expected = forward(base)
    assert expected.std() > 0
    unload()
    size = base.model_size()
    assert left_alone(base) is None
    for cap in (0, size // 4, size // 2, size * 2):
        clone = with_residency(base, Residency(cap=cap))
        load(clone)
        assert close(forward(clone), expected) == 0, cap
        assert clone.loaded_size() <= cap, (cap, clone.loaded_size())
        unload()
    assert restored(base, before)


def case_a_gguf_model_keeps_cap_and_lora_whatever_comes_first() -> None:
    base = gguf()
    before = weights(base)
    patched = lora(base)
    load(patched)
    expected = forward(patched)
    unload()
    load(base)
    assert close(forward(base), expected) > 0.01
    unload()
    half = base.model_size() // 2
    for clone in (
        with_residency(lora(base), Residency(cap=half)),
        lora(with_residency(base, Residency(cap=half))),
        with_residency(base, Residency(cap=half)).clone().clone(),
    ):
        assert isinstance(clone, Budgeted) and isinstance(clone, GGUFModelPatcher)
        for _ in range(2):
            load(clone)
            got = forward(clone)
            assert close(got, expected) == 0 or not clone.patches
            assert 0 < clone.loaded_size() <= half
        unload()
    assert type(base) is GGUFModelPatcher
    assert restored(base, before)
    assert not any(getattr(module, "loras", None) for module in base.model.modules())


def case_a_gguf_cap_shrinks_and_grows_without_doubling_a_lora() -> None:
    base = gguf()
    patched = lora(base)
    load(patched)
    expected = forward(patched)
    unload()
    size = base.model_size()
    for share in (2, 4, 2, 1, 8, 1):
        clone = with_residency(patched, Residency(cap=size // share))
        load(clone)
        assert close(forward(clone), expected) == 0, share
        assert clone.loaded_size() <= size // share
    unload()


def case_a_gguf_layer_is_unpacked_beside_its_packed_weight() -> None:
    base = gguf()
    layer = base.model.diffusion_model.blocks[0]
    packed = limits.streaming_bytes(base)
    for block in base.model.diffusion_model.blocks:
        block.weight.tensor_shape = torch.Size((256, 512))
    assert limits.streaming_bytes(base) - packed >= 256 * 512 * 2 - 2 * layer.weight.nbytes


def case_a_patcher_that_moves_its_weights_is_left_alone_by_name() -> None:
    one = plain(Mover)
    reason = left_alone(one)
    assert reason is not None and "Mover" in reason and "moves its weights itself" in reason, reason
    for level in ("aggressive", "ultra"):
        result = report(level, one)
        assert type(result.model) is Mover
        assert f"- resident cap (model): {reason}" in result.report.text()
        assert "- budget" not in result.report.text()
    result = report("none", one, budget_bytes=1 << 30)
    assert f"- budget (model): {reason}" in result.report.text()
    result = report("ultra", one, cleanup="always")
    assert residency_of(result.model).cleanup == "always"
    load(result.model)
    assert forward(result.model).std() > 0
    unload()


def case_a_distorch_model_is_left_alone_and_others_are_not() -> None:
    one = plain()
    one.model._distorch_v2_meta = {"full_allocation": "#npu:0;4.0;cpu"}
    assert "DisTorch" in str(left_alone(one))
    assert type(report("ultra", one).model) is mp.ModelPatcher
    core = mp.ModelPatcher.partially_load

    def partially_load(self, device_to, extra_memory=0, full_load=False, force_patch_weights=False):
        return core(self, device_to, extra_memory, force_patch_weights)

    mp.ModelPatcher.partially_load = partially_load
    mp.ModelPatcher._distorch_patched = True
    try:
        other = plain()
        assert left_alone(other) is None
        load(other)
        expected = forward(other)
        unload()
        clone = with_residency(other, Residency(cap=other.model_size() // 2))
        load(clone)
        assert close(forward(clone), expected) == 0
        assert 0 < clone.loaded_size() <= other.model_size() // 2
        unload()
        assert "ComfyUI-MultiGPU has replaced" in notes(other)
    finally:
        mp.ModelPatcher.partially_load = core
        del mp.ModelPatcher._distorch_patched
    assert "MultiGPU" not in notes(other)


def case_layers_that_cannot_stream_are_left_alone() -> None:
    one = with_inner(Plain())
    reason = left_alone(one)
    assert reason is not None and "in layers ComfyUI cannot stream" in reason, reason
    result = report("ultra", one)
    load(result.model)
    inner = result.model.model.diffusion_model
    assert inner.layer.weight.device == DEVICE, "it would compute on the device from RAM"
    unload()
    engine = with_inner(Engine())
    assert "Engine" in str(left_alone(engine)) and "TensorRT" in str(left_alone(engine))
    assert type(report("ultra", engine).model) is mp.ModelPatcher


def case_a_few_plain_layers_do_not_spare_a_model_its_cap() -> None:
    one = plain()
    one.model.diffusion_model.scale = torch.nn.Linear(4, 4)
    assert left_alone(one) is None
    assert isinstance(report("ultra", one).model, Budgeted)


def case_a_model_that_cannot_leave_the_device_is_named() -> None:
    if DEVICE.type == "cpu":
        one = mp.ModelPatcher(Model(), CPU, CPU)
        assert left_alone(one) is None
        return
    one = mp.ModelPatcher(Model(), DEVICE, DEVICE)
    text = report("ultra", one, cleanup="always").report.text()
    assert "- cleanup (model): it has nowhere to go" in text and "+ cleanup" not in text, text
    assert f"- resident cap (model): it has nowhere to go: ComfyUI keeps it on {DEVICE}" in text
    assert left_alone(plain()) is None


def case_every_mark_of_another_pack_is_named() -> None:
    def step(model_function, options):
        return model_function(options["input"], options["timestep"], **options["c"])

    step.__module__ = "/somewhere/custom_nodes/ComfyUI-TeaCache.nodes"

    def attention(func, *args, **kwargs):
        return func(*args, **kwargs)

    attention.__module__ = "/somewhere/custom_nodes/comfyui-kjnodes.nodes.model_optimization_nodes"

    def wrap(one):
        one.set_model_unet_function_wrapper(step)

    def attend(one):
        one.model_options["transformer_options"]["optimized_attention_override"] = attention

    def compiled(one):
        one.model_options["torch_compile_kwargs"] = {"backend": "inductor"}

    def compiled_by_wrapper(one):
        one.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", step)

    def compiled_by_patch(one):
        kind = type("OptimizedModule", (), {})
        one.add_object_patch("diffusion_model", kind())

    def cached(one):
        one.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "easycache", step)

    def spread(one):
        one.additional_models["multigpu"] = [plain()]

    for change, said in (
        (wrap, "model: ComfyUI-TeaCache wraps every step"),
        (attend, "model: comfyui-kjnodes has chosen its attention"),
        (compiled, "model: compiled by torch.compile"),
        (compiled_by_wrapper, "model: compiled by torch.compile"),
        (compiled_by_patch, "model: compiled by torch.compile"),
        (cached, "model: steps are cached (easycache)"),
        (spread, "model: copies of it run on 1 more device(s)"),
    ):
        one = plain()
        assert "model:" not in notes(one)
        change(one)
        assert said in notes(one), (said, notes(one))
        if change is not compiled_by_patch:
            assert said in report("ultra", one).report.text()
    assert "model: a GGUF model" in notes(gguf())


def case_our_own_marks_are_not_named() -> None:
    first = report("ultra", budget_bytes=1 << 30).model
    assert "model:" not in notes(first)


def case_a_pack_with_loaders_of_its_own_is_named_when_installed() -> None:
    kept = sys.modules.get("nodes")
    loader = SimpleNamespace(RELATIVE_PYTHON_MODULE="custom_nodes.wan-wrapper")
    sys.modules["nodes"] = ModuleType("nodes")
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"WanVideoModelLoader": loader}
    try:
        assert "wan-wrapper is installed: its models never pass Optimize Pipeline" in notes(plain())
    finally:
        del sys.modules["nodes"]
        if kept is not None:
            sys.modules["nodes"] = kept
    assert "never pass" not in notes(plain())


def case_a_foreign_object_that_raises_costs_one_note_only() -> None:
    class Touchy(dict):
        def get(self, *_: object) -> object:
            raise RuntimeError("not now")

    one = gguf()
    one.model_options = Touchy(one.model_options)
    assert "a GGUF model" in notes(one)
