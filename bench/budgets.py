"""Random budgets: is each kept, is the image the same, and does no mode of diffusers move less?

For each kind of run the pipeline's own figures come first, then those of diffusers' modes. Then
budgets are drawn between the smallest one the planner names and what everything on the device
takes. The smallest itself has to do, and a little less has to be refused.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..memory import profiles
from ..memory.adapters.synthetic import build, run
from ..memory.cleanup import release
from ..memory.errors import BudgetError
from ..memory.levels import MemoryOptimizationConfig
from ..memory.optimizer import MemoryOptimizer
from ..memory.peaks import PeakWindow
from ..memory.planner.planner import MARGIN
from ..memory.planner.work import Work
from ..memory.units import format_bytes, parse_bytes
from .budget_modes import MODES
from .places import Place
from .table import render

COUNT, SEED = 100, 2026
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 6e-2}
"""Largest difference of images of values 0 to 1 where the VAE works in strips, by type: the
rounding of a decoder with random weights. Wherever weights lie, no bit may change."""
FP8_MEAN = 0.08
"""Mean difference allowed where FP8 was agreed to, and chosen; weights are random."""
_STEP = 1600 << 10
"""What the smallest budget is named in: a thousandth of a GB, and what two decimals show."""
_BESIDE = 96 << 10
"""Bytes a run moves besides weights: token ids, a scheduler's tables."""


@dataclass(frozen=True)
class Case:
    """A kind of run; ``size`` in pixels. ``fp8``: weights may be stored in FP8."""

    model: str
    dtype: str
    size: int
    steps: int
    batch: int = 1
    fp8: bool = False

    @property
    def work(self) -> Work:
        """For the planner."""
        return Work(self.size, self.size, batch=self.batch, steps=self.steps)

    @property
    def name(self) -> str:
        """For the table."""
        many = f" x {self.batch}" if self.batch > 1 else ""
        may = ", FP8 allowed" if self.fp8 else ""
        return f"{self.model} {self.dtype} {self.size} px{many}, {self.steps} steps{may}"


CASES = (
    Case("tiny-sd15", "float16", 256, 3),
    Case("tiny-sd15", "float32", 192, 1),
    Case("tiny-sd15", "float16", 128, 2, batch=3),
    Case("tiny-sd15", "float16", 192, 4, fp8=True),
    Case("tiny-sdxl", "float16", 256, 2),
    Case("tiny-sdxl", "float16", 192, 4),
    Case("tiny-sdxl", "float32", 128, 2, batch=2),
    Case("tiny-flux", "bfloat16", 256, 3),
    Case("tiny-flux", "bfloat16", 192, 1),
    Case("tiny-flux", "float32", 128, 2, batch=2),
)
FEW = (
    Case("tiny-sd15", "float16", 256, 2),
    Case("tiny-sdxl", "float16", 128, 2),
    Case("tiny-flux", "bfloat16", 128, 2),
)


@dataclass(frozen=True)
class Ran:
    """A run's image and bytes: the peak allocated, copied to the device, and from it."""

    image: torch.Tensor
    peak: int
    to_device: int
    from_device: int


@dataclass
class Budgeted:
    """One budget; bytes. ``wrong`` says what is not as promised."""

    case: str
    budget: int
    peak: int = 0
    predicted: int = 0
    moved: int = 0
    difference: float = 0.0
    rival: str = ""
    rival_moved: int = 0
    plan: str = ""
    wrong: str = ""


@dataclass
class Budgets:
    """All budgets, and what the planner said of those that are too small."""

    rows: list[Budgeted] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether anything is not as promised."""
        return any(row.wrong for row in self.rows)

    def text(self) -> str:
        """The table."""
        table = render(
            ["run", "budget", "peak", "predicted", "moved", "diffusers' best mode that fits",
             "it moves", "difference", "wrong"],
            [
                [
                    row.case,
                    format_bytes(row.budget),
                    format_bytes(row.peak),
                    format_bytes(row.predicted),
                    format_bytes(row.moved),
                    row.rival or "none fits",
                    format_bytes(row.rival_moved) if row.rival else "-",
                    f"{row.difference:.2g}",
                    row.wrong or "-",
                ]
                for row in self.rows
            ],
        )  # fmt: skip
        wrong = sum(bool(row.wrong) for row in self.rows)
        used = [row.peak / row.budget for row in self.rows]
        rivals = [row for row in self.rows if row.rival]
        fewer = sum(row.moved < row.rival_moved for row in rivals)
        return "\n\n".join(
            (
                table,
                f"{len(self.rows)} budgets, {wrong} with something wrong; peaks at "
                f"{min(used):.0%} to {max(used):.0%} of their budget. In {len(rivals)} a mode of "
                f"diffusers fits too, {MARGIN:.0%} of the budget kept free; the plan moves fewer "
                f"bytes in {fewer} of them, and more in "
                f"{sum(row.moved > row.rival_moved + _BESIDE for row in rivals)}.",
                *self.notes,
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"failed": self.failed, "rows": [asdict(row) for row in self.rows]}


def bench_budgets(
    place: Place,
    count: int = COUNT,
    seed: int = SEED,
    cases: Sequence[Case] = CASES,
    told: Callable[[str], None] = lambda _: None,
) -> Budgets:
    """``count`` budgets over ``cases``, the same for the same seed."""
    chance = random.Random(seed)
    profiles.measured(place.device)
    result = Budgets(notes=place.notes)
    for number, case in enumerate(cases):
        share = count // len(cases) + (number < count % len(cases))
        result.rows += _of_case(case, place, share, chance, told)
    return result


def _of_case(
    case: Case, place: Place, count: int, chance: random.Random, told: Callable[[str], None]
) -> Iterator[Budgeted]:
    pipe = build(case.model, case.dtype)
    tried = {name: _mode(pipe, case, place, setup) for name, setup in MODES.items()}
    modes = {name: ran for name, ran in tried.items() if ran is not None}
    whole = next(iter(modes.values()))
    floor = _floor(pipe, case, place)
    told(
        f"{case.name}: {format_bytes(floor)} to {format_bytes(whole.peak)}; "
        + ", ".join(f"{name} {format_bytes(ran.peak)}" for name, ran in modes.items())
    )
    most = whole.peak * (1 + MARGIN) * 1.02
    for number in range(count):
        drawn = floor * (most / floor) ** chance.random()
        budget = floor if number == 0 else math.ceil(drawn)
        row = _try(pipe, case, place, budget, modes, whole, refused=number == 0)
        told(
            f"  {format_bytes(row.budget)}: peak {format_bytes(row.peak)}, moved "
            f"{format_bytes(row.moved)}: {row.wrong or 'as promised'}"
        )
        yield row


def _mode(pipe: Any, case: Case, place: Place, setup: Any) -> Ran | None:
    """One of diffusers' modes, and the pipeline as it was afterwards; ``None`` where it fails.

    diffusers' streamed groups keep float16 copies of a VAE that SDXL decodes in float32.
    """
    undo = setup(pipe, place.device)
    try:
        _run(pipe, case, place)
        return _run(pipe, case, place)
    except RuntimeError as error:
        if "should be the same" not in str(error):
            raise
        return None
    finally:
        undo()
        release(pipe, device=place.device)


def _floor(pipe: Any, case: Case, place: Place) -> int:
    """The smallest budget the planner names."""
    try:
        _optimizer(case, place, 1).optimize_pipeline(pipe, case.work)
    except BudgetError as error:
        named = re.search(r"give ([\d.]+ [KMG]B) or more", str(error))
        assert named is not None, error
        return parse_bytes(named[1].replace(" ", ""))
    raise AssertionError("a budget of one byte was accepted")


def _optimizer(case: Case, place: Place, budget: int) -> MemoryOptimizer:
    settings: dict[str, Any] = {"fp8_storage": True} if case.fp8 else {}
    config = MemoryOptimizationConfig.from_level("none", budget_bytes=budget, **settings)
    return MemoryOptimizer(config, place.device)


def _try(
    pipe: Any,
    case: Case,
    place: Place,
    budget: int,
    modes: dict[str, Ran],
    whole: Ran,
    refused: bool,
) -> Budgeted:
    row, wrong = Budgeted(case.name, budget), list[str]()
    if refused:
        try:
            _optimizer(case, place, budget - _STEP).optimize_pipeline(pipe, case.work)
            wrong.append(f"{format_bytes(_STEP)} less is accepted too")
        except BudgetError:
            pass
    with _optimizer(case, place, budget) as optimizer:
        try:
            optimizer.optimize_pipeline(pipe, case.work)
        except BudgetError as error:
            row.wrong = f"refused: {error}"
            return row
        first, second = (_run(pipe, case, place) for _ in range(2))
        plan = optimizer.plan
        assert plan is not None, "the pipeline was not traced"
        row.plan, row.predicted = plan.note, plan.prediction.peak_allocated
    row.peak = max(first.peak, second.peak)
    row.moved = second.to_device
    difference = (second.image - whole.image).abs()
    row.difference = float(difference.max())
    rivals = {n: ran for n, ran in modes.items() if ran.peak * (1 + MARGIN) <= budget}
    if rivals:
        row.rival = min(rivals, key=lambda name: rivals[name].to_device)
        row.rival_moved = rivals[row.rival].to_device
    if row.peak > budget:
        wrong.append(f"{format_bytes(row.peak - budget)} over")
    if rivals and row.moved > row.rival_moved + _BESIDE:
        wrong.append(f"moves {format_bytes(row.moved - row.rival_moved)} more")
    if plan.config.fp8_storage:
        if float(difference.mean()) > FP8_MEAN:
            wrong.append(f"mean difference {float(difference.mean()):.2g}")
    else:
        cut = plan.config.enable_vae_tiling or plan.config.enable_vae_slicing
        allowed = TOLERANCE[case.dtype] if cut or plan.config.forward_chunk_size else 0.0
        if row.difference > allowed:
            wrong.append(f"difference {row.difference:.2g}")
    row.wrong = "; ".join(wrong)
    return row


def _run(pipe: Any, case: Case, place: Place) -> Ran:
    before = place.counters()
    window = PeakWindow(place.device)
    image = run(pipe, size=case.size, steps=case.steps, batch=case.batch)
    peak = window.close().allocated
    after = place.counters()
    assert before is not None and after is not None and peak is not None
    return Ran(image, peak, after["h2d"] - before["h2d"], after["d2h"] - before["d2h"])
