"""Which types ComfyUI would choose on a device, told to a process that has no such device."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_FLAG = re.compile(r"(fp|bf)\d|force_")
"""Start flags of ComfyUI about types."""
_ALWAYS = (True, True, True, True)


@dataclass(frozen=True)
class Precision:
    """The defaults are those of a recent NVIDIA GPU.

    Attributes:
        fp16, bf16: what ``should_use_fp16`` and ``should_use_bf16`` say, first as a type to store
            in without and with a manual cast, then the same where speed is what counts.
        flags: names of the start flags that are set.
    """

    fp16: tuple[bool, ...] = _ALWAYS
    bf16: tuple[bool, ...] = _ALWAYS
    flags: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> Precision:
        """Of this ComfyUI's device. Models of any size: older GPUs decide by that as well."""
        import comfy.cli_args
        import comfy.model_management as mm

        device = mm.get_torch_device()

        def said(ask: Callable[..., Any]) -> tuple[bool, ...]:
            return tuple(
                bool(ask(device, prioritize_performance=fast, manual_cast=cast))
                for fast in (False, True)
                for cast in (False, True)
            )

        flags = tuple(
            name
            for name, value in sorted(vars(comfy.cli_args.args).items())
            if value is True and _FLAG.match(name)
        )
        return cls(said(mm.should_use_fp16), said(mm.should_use_bf16), flags)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Precision:
        """What :meth:`to_dict` described."""
        return cls(**{name: tuple(value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def set_flags(self, args: Any) -> None:
        """Set the start flags in ComfyUI's ``args``, before anything reads them."""
        for name in self.flags:
            if hasattr(args, name):
                setattr(args, name, True)

    def answers(self) -> dict[str, Any]:
        """Functions of ``comfy.model_management`` by name, answering as the device would."""
        return {
            "should_use_fp16": _saying(self.fp16),
            "should_use_bf16": _saying(self.bf16),
        }


def _saying(said: tuple[bool, ...]) -> Callable[..., bool]:
    def answer(
        device: Any = None,
        model_params: int = 0,
        prioritize_performance: bool = True,
        manual_cast: bool = False,
    ) -> bool:
        return said[2 * bool(prioritize_performance) + bool(manual_cast)]

    return answer
