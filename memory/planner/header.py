"""What a safetensors file says of its weights, read from its first bytes: no weight is read."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PipelineLoadError
from ..units import format_bytes

_MOST = 100_000_000
"""Bytes of a header, as the format's own reader allows."""
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * WIDTHS.get(self.dtype, 2)


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, and the file's own notes.

    ``missing``: bytes of weights that the header names and the file does not have.
    """

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    missing: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def common_dtype(self) -> str:
        """The type most bytes are in."""
        counts: Counter[str] = Counter()
        for entry in self.tensors.values():
            counts[entry.dtype] += entry.nbytes
        return counts.most_common(1)[0][0] if counts else "F16"

    def cut_short(self, name: str) -> str | None:
        """What to tell of a file called ``name`` that lacks a part; ``None`` if it is whole."""
        if not self.missing:
            return None
        return (
            f"{name} is cut short by {format_bytes(self.missing)}: this is what the whole file "
            f"would take; download it again"
        )


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        PipelineLoadError: the file is no safetensors, is cut short, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _MOST:
                raise ValueError("its first 8 bytes are no length of a header")
            raw = file.read(size)
            if len(raw) < size:
                raise ValueError(f"its header has {size} bytes and the file {len(raw)}")
            held = os.fstat(file.fileno()).st_size - 8 - size
        entries = json.loads(raw)
        if not isinstance(entries, dict):
            raise ValueError("its header is no object")
        notes = entries.pop("__metadata__", None) or {}
        tensors = {name: _entry(name, entry) for name, entry in entries.items()}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        metadata = {str(key): str(value) for key, value in notes.items()}
    except OSError as error:
        raise PipelineLoadError(f"{path} cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise PipelineLoadError(
            f"{path} is no safetensors file: a tensor of its header has no {error}"
        ) from None
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise PipelineLoadError(f"{path} is no safetensors file: {error}") from None
    return Header(tensors, metadata, max(0, max(ends, default=0) - held))


def _entry(name: str, entry: Any) -> Entry:
    shape = tuple(int(length) for length in entry["shape"])
    if any(length < 0 for length in shape):
        raise ValueError(f"{name} has a negative length")
    return Entry(str(entry["dtype"]), shape)
