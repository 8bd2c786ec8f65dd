"""Tells which stage of an image a pipeline is in, from its components' forwards.

Text and image encoders run in ``text_encoding``, UNet, transformer, prior and ControlNet in
``denoising``, the VAE's encode and decode in ``decoding``. Components are recognised by the names
diffusers gives them.

Hazard: ``vae.decode`` is a method, which no torch hook sees. It is wrapped on the instance, and
put back as it was; a wrapper somebody put around ours meanwhile stays, and ours does nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .stage_names import DECODING, DENOISING, TEXT_ENCODING
from .targets import parts_of

__all__ = ["DECODING", "DENOISING", "TEXT_ENCODING", "StageHooks", "stage_of"]

_PREFIXES = {
    TEXT_ENCODING: ("text_encoder", "image_encoder", "prior_text_encoder"),
    DENOISING: ("unet", "transformer", "prior", "controlnet", "adapter", "decoder", "t2i"),
    DECODING: ("vae", "vqgan", "vqvae", "movq"),
}

_DENOISERS = ("unet", "transformer", "prior")
_METHODS = ("encode", "decode")
_ABSENT = object()


def stage_of(component: str) -> str | None:
    """The stage in which the component of that name works; ``None`` for one of no stage."""
    return next((stage for stage, names in _PREFIXES.items() if component.startswith(names)), None)


class StageHooks:
    """Calls ``enter(stage)`` before and ``leave(stage)`` after each working component's forward.

    ``leave`` is called when the forward raised, too. Nothing on the pipeline changes until
    :meth:`install`, and nothing is left of it after :meth:`remove`.
    """

    def __init__(
        self, pipeline: Any, enter: Callable[[str], None], leave: Callable[[str], None]
    ) -> None:
        self.latents: tuple[int, ...] | None = None
        """Shape of what the denoiser was given last."""
        self._pipeline = pipeline
        self._enter = enter
        self._leave = leave
        self._undo: list[Callable[[], None]] = []
        self._active = False

    def install(self) -> None:
        """Hook every component that works in a stage."""
        self._active = True
        for name, component in parts_of(self._pipeline):
            stage = stage_of(name)
            if stage is None or not isinstance(component, torch.nn.Module):
                continue
            self._hook_forward(component, stage)
            if name in _DENOISERS:
                look = component.register_forward_pre_hook(self._look, with_kwargs=True)
                self._undo.append(look.remove)
            if stage == DECODING:
                for method in _METHODS:
                    self._wrap_method(component, method, stage)

    def remove(self) -> None:
        """Take every hook away, in reverse."""
        self._active = False
        while self._undo:
            self._undo.pop()()

    def _hook_forward(self, component: torch.nn.Module, stage: str) -> None:
        before = component.register_forward_pre_hook(lambda *_: self._enter(stage), prepend=True)
        after = component.register_forward_hook(lambda *_: self._leave(stage), always_call=True)
        self._undo += [before.remove, after.remove]

    def _look(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = next((it for it in (*args, *kwargs.values()) if isinstance(it, torch.Tensor)), None)
        self.latents = None if found is None else tuple(found.shape)

    def _wrap_method(self, component: torch.nn.Module, name: str, stage: str) -> None:
        original = getattr(component, name, None)
        if original is None:
            return
        own = vars(component)
        previous = own.get(name, _ABSENT)

        @functools.wraps(original)
        def staged(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(*args, **kwargs)
            self._enter(stage)
            try:
                return original(*args, **kwargs)
            finally:
                self._leave(stage)

        own[name] = staged

        def restore() -> None:
            if own.get(name) is not staged:
                return
            if previous is _ABSENT:
                del own[name]
            else:
                own[name] = previous

        self._undo.append(restore)
