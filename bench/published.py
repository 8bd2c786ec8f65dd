"""Predictions beside measurements that others published, so that anybody can see the errors.

Each row says what was measured, by whom, on what. Models have their published configurations and no
weights. Where a pipeline of several components was measured, the rows add up what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..memory.units import GIB
from .table import render

_CUBLAS = int(8.125 * (1 << 20))
"""Bytes cuBLAS takes at its first product; 32 MiB on Hopper."""
_CUBLAS_HOPPER = 32 << 20

QUANTO = "huggingface.co/blog/quanto-diffusers (H100)"
QUANTIZATION = "huggingface.co/blog/diffusers-quantization (H100)"
SD3 = "huggingface.co/blog/sd3 (A100)"
OFFLOAD = "github.com/huggingface/diffusers/pull/9177"
SAMPLES = "huggingface.co/datasets/sayakpaul/sample-datasets (A100)"
INVOKE = "github.com/invoke-ai/InvokeAI/pull/9305 (RTX 4090)"


@dataclass(frozen=True)
class Case:
    """One published figure in GiB. ``stated``: the error said of it when the method was tried."""

    what: str
    published: float
    source: str
    predict: Callable[[], int]
    kind: str = "allocated"
    stated: float = 0.0


@dataclass(frozen=True)
class Compared:
    """A case beside its prediction; GiB, the error in percent."""

    what: str
    kind: str
    predicted: float
    published: float
    source: str
    stated: float

    @property
    def error(self) -> float:
        """Percent of the published figure."""
        return 100 * (self.predicted / self.published - 1)


@dataclass
class Comparison:
    """All rows; ``failed`` if one is further off than it was stated to be, by a point or more."""

    rows: list[Compared] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the table no longer says what the documents say."""
        return any(abs(row.error) > abs(row.stated) + 1 for row in self.rows)

    def text(self) -> str:
        """The table."""
        table = render(
            ["GiB", "kind", "predicted", "published", "error", "stated", "source"],
            [
                [
                    row.what,
                    row.kind,
                    f"{row.predicted:.3f}",
                    f"{row.published:.3f}",
                    f"{row.error:+.1f}%",
                    f"{row.stated:+.1f}%",
                    row.source,
                ]
                for row in self.rows
            ],
        )
        return (
            f"{table}\n\nPredicted without running: configurations without weights, traced on fake "
            f"tensors. `stated` is the error the documentation gives."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "failed": self.failed,
            "rows": [{**asdict(row), "error_percent": row.error} for row in self.rows],
        }


def compare(progress: Callable[[str], None] | None = None) -> Comparison:
    """Predict every published case."""
    result = Comparison()
    for case in cases():
        if progress is not None:
            progress(case.what)
        result.rows.append(
            Compared(
                case.what,
                case.kind,
                case.predict() / GIB,
                case.published,
                case.source,
                case.stated,
            )
        )
    return result


def cases() -> Iterator[Case]:
    """Every published figure, cheapest first."""
    from .published_runs import Runs

    runs = Runs()
    for size, allocated in ((512, 1.274), (1024, 4.369), (1536, 9.532), (2048, 16.754)):
        yield Case(
            f"Qwen-Image VAE decode, {size} px",
            allocated,
            INVOKE,
            lambda size=size: runs.qwen_decode(size),  # type: ignore[misc]
            stated=-0.3,
        )
    yield Case("FLUX.1-dev loaded", 31.447, QUANTIZATION, runs.flux_loaded, "reserved", 0.0)
    yield Case("FLUX.1-dev, 1024 px", 36.166, QUANTIZATION, runs.flux_peak, "reserved", 0.4)
    yield Case(
        "the same in bnb 4-bit",
        17.281,
        QUANTIZATION,
        lambda: runs.flux_beside(12.584),
        "reserved",
        1.0,
    )
    yield Case(
        "the same in torchao int8",
        21.482,
        QUANTIZATION,
        lambda: runs.flux_beside(17.020),
        "reserved",
        1.9,
    )
    yield Case("FLUX.1-dev, components offloaded", 22.74, OFFLOAD, runs.flux_offloaded, stated=-0.5)
    yield Case("the same, transformer in FP8", 11.70, OFFLOAD, runs.flux_offloaded_fp8, stated=-0.4)
    yield Case(
        "PixArt-Sigma float16, loaded",
        12.086,
        QUANTO,
        lambda: runs.pixart_loaded() + _CUBLAS_HOPPER,
        stated=0.0,
    )
    yield Case(
        "SD3 medium float16, loaded",
        16.403,
        QUANTO,
        lambda: runs.sd3_loaded() + _CUBLAS_HOPPER,
        stated=0.0,
    )
    yield Case("SD3 medium, 1024 px", 18.765, SD3, lambda: runs.sd3_peak() + _CUBLAS, stated=-0.4)
    yield Case(
        "SD3 medium, components offloaded",
        12.0645,
        SD3,
        lambda: runs.sd3_offloaded() + _CUBLAS,
        stated=0.6,
    )
    yield Case(
        "SD3 medium without T5, components offloaded",
        4.266,
        SD3,
        lambda: runs.sd3_without_t5() + _CUBLAS,
        stated=-1.4,
    )
    yield Case("SDXL float32, 1024 px", 16.827, SAMPLES, runs.sdxl_float32, stated=5.0)
