"""What the published runs hold: loaded components added up, and the one that computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache

from ..memory.adapters.diffusers_traces import PipelineTraces
from ..memory.adapters.published_models import traced
from ..memory.adapters.synthetic import build
from ..memory.levels import MemoryOptimizationConfig
from ..memory.planner.predict import DENOISE, Prediction, Turn, predict
from ..memory.planner.trace import Trace
from ..memory.planner.work import Work

_WORK = Work(steps=2)


class Runs:
    """Predictions by case; every model is traced once."""

    @lru_cache(maxsize=32)  # noqa: B019 - one object a run of the command
    def of(self, model: str, dtype: str = "float16", size: int = 1024) -> Trace:
        """A published model's call."""
        work = Work(size, size) if model in ("sd3", "pixart") else Work(size, size, guided=False)
        return traced(model, work, dtype)

    def qwen_decode(self, size: int) -> int:
        """The decode alone, weights included."""
        trace = self.of("qwen vae", "float16", size)
        return trace.weight_bytes + trace.activation_peak()

    @cached_property
    def flux(self) -> PipelineTraces:
        """FLUX.1-dev as a pipeline."""
        return PipelineTraces(build("flux", "bfloat16", on_meta=True), _WORK)

    def _flux(self, **settings: object) -> Prediction:
        return predict(self.flux.turns(MemoryOptimizationConfig(**settings)))  # type: ignore[arg-type]

    def flux_loaded(self) -> int:
        """Reserved once every component is on the device."""
        turns = self.flux.turns(MemoryOptimizationConfig())
        return _reserved(turns)

    def flux_peak(self) -> int:
        """Reserved at the end of a run with everything on the device."""
        return self._flux().peak_reserved

    def flux_beside(self, loaded: float) -> int:
        """The same with other weights, of which ``loaded`` GiB are reserved."""
        return int(loaded * (1 << 30)) + self.flux_peak() - self.flux_loaded()

    def flux_offloaded(self) -> int:
        """One component at a time."""
        return self._flux(offload="component").stages["denoise"].peak_allocated_bytes

    def flux_offloaded_fp8(self) -> int:
        """One component at a time, every matrix of the transformer in FP8, as was measured."""
        config = MemoryOptimizationConfig(offload="component", fp8_storage=True)
        turns = [turn for turn in self.flux.turns(config) if turn.stage == DENOISE]
        all_of_it = [
            replace(turn, placement=replace(turn.placement, skip=()), after=None) for turn in turns
        ]
        return predict(all_of_it).peak_allocated

    def pixart_loaded(self) -> int:
        """All components on the device."""
        return sum(self.of(name).weight_bytes for name in ("pixart", "t5", "vae"))

    def sd3_loaded(self) -> int:
        """All components on the device."""
        return sum(self.of(name).weight_bytes for name in ("sd3", "t5", "clip", "clip g", "vae 16"))

    def sd3_peak(self) -> int:
        """The decode beside them."""
        return self.sd3_loaded() + self.of("vae 16").activation_peak()

    def sd3_offloaded(self) -> int:
        """T5 while it encodes: the second prompt finds the larger CLIP still there."""
        encoders = self.of("t5").weight_bytes + self.of("clip g").weight_bytes
        return encoders + self.of("t5").activation_peak()

    def sd3_without_t5(self) -> int:
        """The larger of the transformer's turn and the autoencoder's."""
        return max(
            trace.weight_bytes + trace.activation_peak()
            for trace in (self.of("sd3"), self.of("vae 16"))
        )

    def sdxl_float32(self) -> int:
        """A run with everything on the device."""
        traces = PipelineTraces(build("sdxl", "float32", on_meta=True), _WORK)
        return predict(traces.turns(MemoryOptimizationConfig())).peak_allocated


def _reserved(turns: list[Turn]) -> int:
    """Reserved for the weights of all components alone."""
    from ..memory.planner.replay import Replay

    replay = Replay()
    for turn in turns:
        replay.hold(turn.layout)
    return replay.allocator.peak_reserved
