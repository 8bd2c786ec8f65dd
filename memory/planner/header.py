"""What a safetensors file says of its weights, read from its first bytes: no weight is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import PipelineLoadError

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
    """The tensors of a file by name, and the file's own notes."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]

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
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", None) or {}
        tensors = {
            name: Entry(str(entry["dtype"]), tuple(int(length) for length in entry["shape"]))
            for name, entry in entries.items()
        }
    except OSError as error:
        raise PipelineLoadError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineLoadError(f"{path} is no safetensors file: {error}") from None
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})
