"""The levels, and the configuration each of them stands for.

A level is a preset: :meth:`MemoryOptimizationConfig.from_level` fills every field, and each field
may then be set by hand. Assignments are checked one by one, combinations by
:meth:`MemoryOptimizationConfig.validate`. No torch here: levels are chosen before it is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .level import CHOSEN_FOR_YOU, PLANNED, SELECTOR, OptimizationLevel, chosen_by_hand, selected
from .settings import canonical, check_combinations, check_field, check_known

if TYPE_CHECKING:
    from .device import DeviceSnapshot

__all__ = [
    "CHOSEN_FOR_YOU",
    "FIELD_NAMES",
    "PLANNED",
    "SELECTOR",
    "MemoryOptimizationConfig",
    "OptimizationLevel",
    "chosen_by_hand",
    "selected",
]

TILE_LIMIT_BALANCED = 512
TILE_LIMIT_SMALL = 256
TILE_MINIMUM = 64
_TILE_STEP = 64


@dataclass
class MemoryOptimizationConfig:
    """Everything Lowtide may do to a pipeline. The defaults do nothing.

    Attributes:
        level: the preset this began as. Fixed after construction: a label that can be changed
            without changing what it stands for would lie. Use :meth:`from_level`.
        requested_level: what was asked for; ``auto`` where AUTO was resolved, ``fastest`` where the
            level is settled again by whoever applies the configuration.
        reason: why that level, one sentence.
        offload: ``component`` moves whole components to the device for their turn, ``sequential``
            one leaf module after the other, ``group`` leaves or blocks with prefetch. ``planned``
            is what a budget comes to: a share of the device for each component in its turn.
        group_offload_type: ``leaf_level`` or ``block_level``; only with ``offload="group"``.
        group_blocks: blocks moved together; only with ``block_level``.
        use_stream: copy beside the computation; ``None`` = where the device has streams.
        record_stream: let the allocator, not a synchronisation, guard a weight in use.
        low_cpu_mem: pin host memory per transfer instead of once: less RAM, slower.
        fp8_storage: keep the denoiser's weights in ``storage_dtype``, compute in another type.
        storage_dtype: ``float8_e4m3fn``.
        keep_originals: keep the weights FP8 stands for in host RAM, for undoing. ``False`` drops
            them: half the RAM, and FP8 until ComfyUI's model is loaded again.
        compute_dtype: ``bfloat16``, ``float16``, ``float32``; ``None`` = the model's own.
        enable_vae_tiling: decode and encode the image in tiles.
        vae_tile_mode: ``exact`` gives the untiled image at the memory of a tile, ``blended`` mixes
            overlapping tiles; ``auto`` is exact where every layer of the VAE is known, but blended
            for diffusers pipelines at ULTRA, where fewer bytes have to move.
        vae_tile_size: tile edge in pixels of the image; ``None`` = :meth:`tile_for`.
        vae_tile_overlap: part of a blended tile's edge shared with its neighbour, 0 to 0.5.
        enable_vae_slicing: decode a batch in parts.
        vae_decode_chunk_size: latents decoded at once; ``None`` = the VAE's own slicing (one).
        attention: ``auto`` takes the fused kernel where there is one and slices where there is
            none (ComfyUI's own models: its own choice); ``pytorch`` (or ``sdpa``), ``xformers``,
            ``sub-quadratic``, ``split``, ``sliced`` insist. diffusers has no sub-quadratic and no
            split attention and slices instead.
        attention_slice_size: heads at once when sliced: a number, ``auto`` (half), ``max`` (one).
        forward_chunk_size: tokens, those of a whole batch together for ComfyUI's own models and
            of one image for diffusers, at once through feed-forward layers; ``None`` = all.
        cleanup: ``off`` (the switches below rest), ``pressure`` (they act when memory is short),
            ``always``.
        after_load, after_lora, after_step, after_unload, on_exit: when a cleanup is due.
        cleanup_host: a cleanup gives host memory back too: it trims the heap, drops pinned memory,
            and has ComfyUI forget its cached results after the run, so that the next one loads
            its models from disk again.
        history: keep the figures of runs, to correct predictions with (docs/history.md).
        step_peaks: in ComfyUI, measure the peak of every sampling step beside that of its node.
        budget_bytes: the most that may be allocated on the device at any moment.
        cpu_mode: only the denoiser runs on the device; text encoders, image encoders and the VAE
            compute on the CPU (slower, and equal up to the CPU's rounding). On a machine without
            an accelerator everything computes on the CPU, so that nothing is offloaded.
    """

    level: OptimizationLevel = OptimizationLevel.NONE
    requested_level: OptimizationLevel | None = None
    reason: str = ""
    offload: str = "none"
    group_offload_type: str = "leaf_level"
    group_blocks: int = 1
    use_stream: bool | None = None
    record_stream: bool = False
    low_cpu_mem: bool = False
    fp8_storage: bool = False
    storage_dtype: str = "float8_e4m3fn"
    keep_originals: bool = True
    compute_dtype: str | None = None
    enable_vae_tiling: bool = False
    vae_tile_mode: str = "auto"
    vae_tile_size: int | None = None
    vae_tile_overlap: float = 0.25
    enable_vae_slicing: bool = False
    vae_decode_chunk_size: int | None = None
    attention: str = "auto"
    attention_slice_size: int | str = "auto"
    forward_chunk_size: int | None = None
    cleanup: str = "off"
    after_load: bool = True
    after_lora: bool = True
    after_step: bool = False
    after_unload: bool = True
    on_exit: bool = True
    cleanup_host: bool = False
    history: bool = True
    step_peaks: bool = True
    budget_bytes: int | None = None
    cpu_mode: bool = False

    def __post_init__(self) -> None:
        if self.requested_level is None:
            self.requested_level = self.level

    def __setattr__(self, name: str, value: Any) -> None:
        check_known(name, FIELD_NAMES)
        # None is what `requested_level` is constructed with, and never what it holds.
        if name == "level" or (
            name == "requested_level" and (value is not None or name in self.__dict__)
        ):
            value = OptimizationLevel.parse(value)
        if name == "level":
            if value in CHOSEN_FOR_YOU:
                raise ConfigError(
                    f"`level` of a configuration can't stay {value.value}; "
                    f"MemoryOptimizationConfig.auto() or from_level({value.value!r}) resolve it"
                )
            if self.__dict__.get("level", value) is not value:
                raise ConfigError(
                    f"`level` is fixed once made ({self.level.value}): its fields would stay as "
                    f"they are. Use MemoryOptimizationConfig.from_level({value.value!r})"
                )
        value = canonical(name, value)
        check_field(name, value)
        super().__setattr__(name, value)

    @classmethod
    def from_level(
        cls, level: str | OptimizationLevel, **overrides: Any
    ) -> MemoryOptimizationConfig:
        """The preset of ``level`` with ``overrides`` on top, validated.

        AUTO looks at the best device there is (:meth:`auto`), and so does FASTEST until it is
        applied.

        Raises:
            ConfigError: unknown level or field, a value out of range, an impossible combination.
        """
        parsed = OptimizationLevel.parse(level)
        if parsed in CHOSEN_FOR_YOU:
            return cls.auto(**{"requested_level": parsed, **overrides})
        values = {"level": parsed, "reason": chosen_by_hand(parsed), **_PRESETS[parsed]}
        return cls.from_dict({**values, **overrides})

    @classmethod
    def auto(
        cls, snapshot: DeviceSnapshot | None = None, **overrides: Any
    ) -> MemoryOptimizationConfig:
        """AUTO resolved against a device; ``None`` probes the best one available.

        On a machine without an accelerator the level follows the host's RAM, nothing is
        offloaded (weights are in that RAM already) and CPU mode is on.
        """
        from .automatic import resolve_level

        if snapshot is None:
            from .device import snapshot as probe

            snapshot = probe()
        level, reason, cpu_mode = resolve_level(
            OptimizationLevel.AUTO,
            snapshot.total,
            unified=snapshot.unified and snapshot.kind != "cpu",
        )
        values: dict[str, Any] = {"level": level, **_PRESETS[level], "cpu_mode": cpu_mode}
        if snapshot.kind == "cpu":
            values.update(offload="none", cpu_mode=True)
            reason = f"no accelerator, everything runs on the CPU; host RAM {reason}"
        values.update(requested_level=OptimizationLevel.AUTO, reason=reason)
        return cls.from_dict({**values, **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryOptimizationConfig:
        """The configuration :meth:`to_dict` described; fields left out take their defaults.

        Raises:
            ConfigError: as :meth:`from_level`.
        """
        for name in values:
            check_known(name, FIELD_NAMES)
        config = cls(**values)
        config.validate()
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        values = dataclasses.asdict(self)
        for name in ("level", "requested_level"):
            values[name] = values[name].value
        return values

    def replace(self, **changes: Any) -> MemoryOptimizationConfig:
        """A validated copy with ``changes``; for another level use :meth:`from_level`."""
        if "level" in changes and OptimizationLevel.parse(changes["level"]) is not self.level:
            raise ConfigError(
                "`level` can't be replaced: its fields would stay as they are. "
                "Use MemoryOptimizationConfig.from_level(...)"
            )
        return self.from_dict({**self.to_dict(), **changes})

    def validate(self, *, device_bytes: int | None = None, vae_factor: int | None = None) -> None:
        """Raise if settings exclude each other, or don't suit a device or a VAE.

        Args:
            device_bytes: the device's memory; a budget must fit into it.
            vae_factor: pixels per latent of the VAE's edge; a tile must hold several latents.

        Raises:
            ConfigError: names the fields and what to do. :class:`BudgetError` for a budget
                larger than the device.
        """
        check_combinations(self, device_bytes=device_bytes, vae_factor=vae_factor)

    @property
    def tile_limit(self) -> int:
        """Largest tile edge, in pixels, that :meth:`tile_for` chooses at this level."""
        gentle = (OptimizationLevel.NONE, OptimizationLevel.BALANCED)
        return TILE_LIMIT_BALANCED if self.level in gentle else TILE_LIMIT_SMALL

    def tile_for(self, height: int, width: int) -> int:
        """Tile edge in pixels for an image: ``vae_tile_size``, or one that really tiles.

        The choice is at most half the longer side and at most :attr:`tile_limit`, a multiple of
        64 and never under 64.
        """
        if self.vae_tile_size is not None:
            return self.vae_tile_size
        edge = min(self.tile_limit, max(height, width) // 2)
        return max(TILE_MINIMUM, edge // _TILE_STEP * _TILE_STEP)


FIELD_NAMES = tuple(field.name for field in dataclasses.fields(MemoryOptimizationConfig))

_VAE = {"enable_vae_tiling": True, "enable_vae_slicing": True}

_PRESETS: dict[OptimizationLevel, dict[str, Any]] = {
    OptimizationLevel.NONE: {},
    OptimizationLevel.BALANCED: {
        "offload": "component",
        **_VAE,
        "cleanup": "pressure",
    },
    OptimizationLevel.AGGRESSIVE: {
        "offload": "sequential",
        **_VAE,
        "vae_decode_chunk_size": 1,
        "cleanup": "always",
    },
    OptimizationLevel.ULTRA: {
        "offload": "group",
        "group_offload_type": "leaf_level",
        "fp8_storage": True,
        **_VAE,
        "vae_decode_chunk_size": 1,
        "cleanup": "always",
    },
}
