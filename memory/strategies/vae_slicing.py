"""VAE slicing: decode and encode a batch a few images at a time.

Works on the call, so that any number at once can be asked for; the VAEs' own slicing knows only
one at a time. For videos it also sets the frames a VAE takes at once, where it has such a setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .base import Applied, Method, Outcome, Skipped, Undo, override, undo_all, wrap_method

NAME = "vae slicing"
_BATCHES = ("z", "x", "sample")
"""Names of the first argument of VAEs' methods."""
_FRAMES = "num_latent_frames_batch_size"


@dataclass(frozen=True)
class VaeSlicing:
    """``chunk`` latents are decoded at once; ``frames`` False leaves a video VAE's own setting."""

    chunk: int = 1
    frames: bool = True


def apply(config: VaeSlicing, vae: torch.nn.Module, name: str) -> Outcome:
    """Slice ``vae.decode`` and ``vae.encode`` along the batch."""
    if not hasattr(vae, "decode"):
        return Skipped(NAME, name, "it has no `decode`")
    undos: list[Undo] = []
    detail = f"{config.chunk} at a time"
    if hasattr(vae, "use_slicing"):
        undos.append(override(vae, "use_slicing", False))
    if config.frames and hasattr(vae, _FRAMES):
        undos.append(override(vae, _FRAMES, config.chunk))
        detail += ", also of a video's latent frames"
    for method in ("decode", "encode"):
        if hasattr(vae, method):
            undos.append(wrap_method(vae, method, _sliced(config.chunk)))
    return Applied(NAME, name, detail, lambda: undo_all(reversed(undos)))


def _sliced(chunk: int) -> Callable[[Method], Method]:
    from .vae_tiling import tensor_of, with_tensor

    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            named_batch = next((name for name in _BATCHES if name in kwargs and not args), None)
            if named_batch is not None:
                args = (kwargs.pop(named_batch),)
            if not args:
                return original(**kwargs)
            batch, *others = args
            if not isinstance(batch, torch.Tensor) or batch.shape[0] <= chunk:
                return original(batch, *others, **kwargs)
            count = batch.shape[0]
            whole: torch.Tensor | None = None
            output: Any = None
            for first in range(0, count, chunk):
                piece = slice(first, min(first + chunk, count))
                rest = [_piece(value, count, piece) for value in others]
                named = {
                    key: piece.stop - piece.start
                    if key == "num_frames"
                    else _piece(value, count, piece)
                    for key, value in kwargs.items()
                }
                output = original(batch[piece], *rest, **named)
                part = tensor_of(output)
                if whole is None:
                    # One buffer for the whole batch: joining the parts at the end would take two.
                    whole = part.new_empty((count, *part.shape[1:]))
                whole[piece] = part
            return with_tensor(output, whole)

        return run

    return around


def _piece(value: Any, count: int, piece: slice) -> Any:
    """The part of a per-item argument that belongs to the piece of the batch."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == count:
        return value[piece]
    if isinstance(value, list) and len(value) == count:
        return value[piece]
    return value
