"""Cases: DynamicVRAM of this ComfyUI and its library, as far as they run without the driver."""

from __future__ import annotations

import inspect
import unittest
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher as mp
from idle import clean
from lowtide.memory.adapters.comfy import dynamic
from lowtide.memory.adapters.comfy.residency import Residency
from paging import PAGE, Pages
from small import CPU, DEVICE, Model, lora


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
