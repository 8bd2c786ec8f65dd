"""How each system other than Lowtide is set up on a diffusers pipeline, by its own calls.

Every function takes (pipeline on the CPU, device) and returns the pipeline to call, or ``None`` for
the one it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

Setup = Callable[[Any, torch.device], Any]


@dataclass(frozen=True)
class Peer:
    """A row: what it is called, how it is set up, and the module it needs beside diffusers."""

    name: str
    setup: Setup
    module: str | None = None
    package: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the package is here; diffusers always is."""
        return self.module is None or find_spec(self.module) is not None


def _nothing(pipe: Any, device: torch.device) -> None:
    pipe.to(device)


def _model_offload(pipe: Any, device: torch.device) -> None:
    pipe.enable_model_cpu_offload(device=device)


def _sequential(pipe: Any, device: torch.device) -> None:
    pipe.enable_sequential_cpu_offload(device=device)


def _leaf_stream(pipe: Any, device: torch.device) -> None:
    pipe.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=True,
    )


def _fp8(pipe: Any, device: torch.device) -> None:
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype
    )


def _default_tile(pipe: Any, device: torch.device) -> None:
    pipe.vae.enable_tiling()


def _tile_256(pipe: Any, device: torch.device) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size = 256
    pipe.vae.tile_latent_min_size = 256 // 8


def _all(*setups: Setup) -> Setup:
    def apply(pipe: Any, device: torch.device) -> None:
        for setup in setups:
            setup(pipe, device)

    return apply


def _mmgp(**options: Any) -> Setup:
    def apply(pipe: Any, device: torch.device) -> None:
        from mmgp import offload

        offload.profile(pipe, 4, verboseLevel=0, **options)

    return apply


def _diffusers_mm(strategy: str) -> Setup:
    def apply(pipe: Any, device: torch.device) -> Any:
        from diffusers_mm import managed

        return managed(pipe, strategy=strategy)

    return apply


def _dynamic_offloader(pipe: Any, device: torch.device) -> None:
    from diffusers_dynamic_offloader import enable_pipeline_offload

    enable_pipeline_offload(pipe, preset="auto", execution_device=str(device))
    _runs_on(pipe, device)


def _dynamic_offloader_convolutions(pipe: Any, device: torch.device) -> None:
    from diffusers_dynamic_offloader import enable_offload, enable_pipeline_offload

    others = [name for name in ("text_encoder", "text_encoder_2", "vae") if hasattr(pipe, name)]
    enable_pipeline_offload(pipe, preset="auto", components=others, execution_device=str(device))
    enable_offload(
        pipe.unet, component="unet", route="linear_convolution", execution_device=str(device)
    )
    _runs_on(pipe, device)


def _runs_on(pipe: Any, device: torch.device) -> None:
    """Tell this one pipeline where it computes, which the package leaves to its caller."""
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda _: device)})


DIFFUSERS = (
    Peer("no optimisation", _nothing),
    Peer("diffusers model offload", _model_offload),
    Peer("diffusers model offload, default tile", _all(_model_offload, _default_tile)),
    Peer("diffusers model offload, tile 256", _all(_model_offload, _tile_256)),
    Peer("diffusers sequential offload", _sequential),
    Peer("diffusers leaf groups, stream", _leaf_stream),
    Peer("diffusers leaf groups, stream, FP8", _all(_fp8, _leaf_stream)),
    Peer("diffusers leaf groups, stream, tile 256", _all(_leaf_stream, _tile_256)),
)

PACKAGES = (
    Peer("mmgp profile 4", _mmgp(), "mmgp", "mmgp"),
    Peer(
        "mmgp profile 4, UNet int8 and pinned",
        _mmgp(extraModelsToQuantize=["unet"], pinnedMemory=["unet"]),
        "mmgp",
        "mmgp",
    ),
    Peer("diffusers-mm auto", _diffusers_mm("auto"), "diffusers_mm", "diffusers-mm"),
    Peer("diffusers-mm group", _diffusers_mm("group_offload"), "diffusers_mm", "diffusers-mm"),
    Peer(
        "diffusers-dynamic-offloader",
        _dynamic_offloader,
        "diffusers_dynamic_offloader",
        "diffusers-dynamic-offloader",
    ),
    Peer(
        "diffusers-dynamic-offloader, linear_convolution",
        _dynamic_offloader_convolutions,
        "diffusers_dynamic_offloader",
        "diffusers-dynamic-offloader",
    ),
)

PEERS = {peer.name: peer for peer in (*DIFFUSERS, *PACKAGES)}
