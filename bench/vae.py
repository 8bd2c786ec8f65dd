"""Exact VAE tiling beside blended tiles and the untiled VAE: difference, peak, bytes moved, time.

One set of seeded weights, rounded to bfloat16, serves every type: so the float32 result is the
truth of them all, and what half precision adds is its arithmetic alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..memory import backend
from ..memory.device import host_snapshot
from ..memory.errors import ConfigError
from ..memory.strategies import exact_tiling, vae_tiling
from ..memory.strategies.base import Applied
from ..memory.units import MIB, format_bytes
from .banded import banded
from .places import Place
from .table import UNKNOWN, render

VAES: dict[str, dict[str, Any]] = {
    "small": {"channels": (32, 64, 128, 128), "latents": 4, "groups": 16},
    "small-16": {"channels": (32, 64, 128, 128), "latents": 16, "groups": 16},
    "full": {"channels": (128, 256, 512, 512), "latents": 4},
    "full-16": {"channels": (128, 256, 512, 512), "latents": 16},
}
"""4 latent channels as in SD1.5 and SDXL; 16, without quant convolutions, as in SD3 and FLUX."""

DTYPES = ("float32", "bfloat16", "float16")
WORKS = ("decode", "encode")
WAYS = UNTILED, BLENDED, EXACT, KEPT = "untiled", "blended", "exact", "exact, maps on device"
EDGE = 256
_PART_OF_RAM = 0.5
_HOST_PER_WHOLE = 1.6
_SIMULATED_PER_WHOLE = 2.6
"""Host bytes an untiled run takes per byte of its largest layer: in plain memory, and on the
simulated accelerator, whose allocator keeps segments."""


@dataclass
class VaeRow:
    """One way of one work in one type; bytes and seconds, ``peak`` beside weights and sample.

    ``error`` is the relative L2 difference to the float32 truth, ``largest`` its largest value.
    """

    work: str
    dtype: str
    way: str
    error: float | None = None
    largest: float | None = None
    peak: int | None = None
    moved: int | None = None
    seconds: float | None = None
    note: str = ""


@dataclass
class VaeBench:
    """The rows of one VAE at one size."""

    name: str
    size: int
    place: Place
    rows: list[VaeRow] = field(default_factory=list)
    truths: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The table and its notes."""
        headers = ["work, type, way", "L2 error", "largest", "peak, MB", "of blended's"]
        headers += ["moved, MB", "CPU seconds" if self.place.on_host else "seconds"]
        peaks = {(row.work, row.dtype, row.way): row.peak for row in self.rows}
        lines = []
        for row in self.rows:
            blended = peaks.get((row.work, row.dtype, BLENDED))
            share = None if not blended or row.peak is None else row.peak / blended
            lines.append(
                [
                    f"{row.work} {row.dtype} {row.way}",
                    _number(row.error, ".1e"),
                    _number(row.largest, ".1e"),
                    _number(None if row.peak is None else row.peak / MIB, ".1f"),
                    _number(share, ".2f"),
                    _number(None if row.moved is None else row.moved / MIB, ".0f"),
                    _number(row.seconds, ".1f"),
                ]
            )
        head = (
            f"VAE {self.name} ({', '.join(map(str, VAES[self.name]['channels']))}; "
            f"{VAES[self.name]['latents']} latent channels, random weights), {self.size} px, "
            f"tiles of {EDGE} px, on {self.place.name}"
        )
        truths = [f"Truth of {work}: {truth}." for work, truth in self.truths.items()]
        notes = [f"{row.work} {row.dtype} {row.way}: {row.note}" for row in self.rows if row.note]
        meaning = (
            "Peak: beside the weights and the sample. Seconds: one run each, no warm-up; where the "
            "CPU does all work, its time over all threads, which other programs do not change."
        )
        return "\n\n".join(
            [head, render(headers, lines), *truths, *notes, meaning, *self.place.notes]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and seconds."""
        return {
            "vae": self.name,
            "size": self.size,
            "device": self.place.name,
            "torch": torch.__version__,
            "truths": self.truths,
            "rows": [asdict(row) for row in self.rows],
        }


def bench_vae(
    name: str,
    place: Place,
    *,
    size: int,
    dtypes: Sequence[str] = DTYPES,
    works: Sequence[str] = WORKS,
    progress: bool = True,
    told: Callable[[str], None] = lambda _line: None,
) -> VaeBench:
    """Measure every way of ``works`` in ``dtypes``; what the host cannot hold is left out and said.

    Args:
        told: is given each row as it is done, as text.

    Raises:
        ConfigError: no VAE of that name, or not enough RAM for what they are compared with.
    """
    if name not in VAES:
        raise ConfigError(f"no VAE is called {name!r}; choose {', '.join(VAES)}")
    bench = VaeBench(name, size, place)
    vae = _build(name)
    total = len(works) * len(dtypes) * len(WAYS)
    with tqdm(total=total, unit="run", disable=not progress) as bar:
        for work in works:
            sample = _sample(vae, work, size)
            truth, bench.truths[work] = _truth(vae, work, sample, size, place)
            for dtype in dtypes:
                for way in WAYS:
                    bar.set_description(f"{work} {dtype} {way}")
                    row = VaeRow(work, dtype, way)
                    _measure(row, vae, sample, truth, place, size)
                    bench.rows.append(row)
                    told(str(row))
                    bar.update()
    return bench


def _build(name: str) -> Any:
    from ..memory.adapters.synthetic.vae import autoencoder
    from ..memory.adapters.synthetic.weights import Maker

    settings = dict(VAES[name])
    channels = settings.pop("channels")
    if settings["latents"] == 16:
        settings |= {"use_quant_conv": False, "use_post_quant_conv": False}
    vae = Maker(torch.bfloat16, 0).make(lambda: autoencoder(channels, **settings))
    return vae.float()


def _sample(vae: Any, work: str, size: int) -> torch.Tensor:
    shape = (1, 3, size, size)
    if work == "decode":
        shape = (1, vae.config.latent_channels, size // 8, size // 8)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (drawn if work == "decode" else drawn.clamp(-1, 1)).bfloat16().float()


def _run(vae: Any, work: str, sample: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        if work == "decode":
            found: torch.Tensor = vae.decode(sample).sample
        else:
            found = vae.encode(sample).latent_dist.parameters
    return found


def _whole(vae: Any, work: str, size: int, itemsize: int) -> int:
    found = exact_tiling.whole_bytes(getattr(vae, f"{work}r"), 1, size, size, itemsize)
    assert found is not None
    return found


def _truth(
    vae: Any, work: str, sample: torch.Tensor, size: int, place: Place
) -> tuple[torch.Tensor, str]:
    """The float32 result on the CPU, and how it was come by."""
    whole = _whole(vae, work, size, 4)
    vae.to("cpu", torch.float32)
    if int(_HOST_PER_WHOLE * whole) <= _ram():
        return _run(vae, work, sample), "the untiled result in float32 on the CPU"
    if whole > host_snapshot().available:
        raise ConfigError(
            f"the result at {size} px, to compare with, takes {format_bytes(whole)} of RAM, and "
            f"{format_bytes(host_snapshot().available)} are free. Choose a smaller --size"
        )
    with banded(vae):
        found = _run(vae, work, sample)
    return found, (
        "the untiled result in float32 on the CPU, whole maps, each convolution in bands of rows "
        "to save its scratch memory"
    )


def _ram() -> int:
    return int(host_snapshot().available * _PART_OF_RAM)


def _measure(
    row: VaeRow, vae: Any, sample: torch.Tensor, truth: torch.Tensor, place: Place, size: int
) -> None:
    dtype: torch.dtype = getattr(torch, row.dtype)
    untiled = _whole(vae, row.work, size, dtype.itemsize)
    if row.way == UNTILED and place.on_host and int(_SIMULATED_PER_WHOLE * untiled) > _ram():
        _in_bands(row, vae, sample.to(dtype), truth, untiled)
        return
    vae.to(place.device, dtype)
    given = sample.to(place.device, dtype)
    held = backend.allocated(place.device) or 0
    budget = held + untiled // 2 if row.way == KEPT else None
    before = place.counters()
    backend.reset_peaks(place.device)
    try:
        with _way(row.way, vae, budget):
            clock = time.process_time if place.on_host else time.perf_counter
            started = clock()
            found = _run(vae, row.work, given)
            backend.synchronize(place.device)
            row.seconds = clock() - started
    except torch.OutOfMemoryError as error:
        row.note = f"out of memory: {str(error).splitlines()[0]}"
        return
    peak, after = backend.peak_allocated(place.device), place.counters()
    row.peak = None if peak is None else peak - held
    if before is not None and after is not None:
        row.moved = sum(after[way] - before[way] for way in ("h2d", "d2h"))
    _compare(row, found, truth)
    del found, given
    gc.collect()
    backend.empty_cache(place.device)


def _in_bands(row: VaeRow, vae: Any, given: torch.Tensor, truth: torch.Tensor, whole: int) -> None:
    """The untiled way where the simulated accelerator has no RAM for it: its error only."""
    free = host_snapshot().available
    if whole > free:
        row.note = f"not run: {format_bytes(whole)} of RAM needed, {format_bytes(free)} are free"
        return
    row.note = (
        "in host memory, each convolution in bands of rows: bytes and time are not a device's"
    )
    vae.to("cpu", given.dtype)
    with banded(vae):
        _compare(row, _run(vae, row.work, given), truth)


def _compare(row: VaeRow, found: torch.Tensor, truth: torch.Tensor) -> None:
    difference = found.to("cpu").float() - truth
    row.error = float(difference.norm() / truth.norm())
    row.largest = float(difference.abs().max())


@contextmanager
def _way(way: str, vae: Any, budget: int | None) -> Iterator[None]:
    if way == UNTILED:
        yield
        return
    if way == BLENDED:
        outcome = vae_tiling.apply(vae_tiling.VaeTiling(_edge), vae, "vae")
    else:
        outcome = exact_tiling.apply(exact_tiling.ExactTiling(_edge, budget=budget), vae, "vae")
    assert isinstance(outcome, Applied)
    try:
        yield
    finally:
        outcome.undo()


def _edge(_height: int, _width: int) -> int:
    return EDGE


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
