"""``python -m lowtide plan``: what a run would take, before it runs and without a GPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..memory.adapters.quiet import silence_libraries
from ..memory.child import command
from ..memory.errors import ConfigError
from ..memory.levels import (
    CHOSEN_FOR_YOU,
    SELECTOR,
    MemoryOptimizationConfig,
    OptimizationLevel,
)
from ..memory.plan import DEFAULT_CARD, DEFAULT_SIZE, SIZES, profile_of
from ..memory.units import gb_to_bytes
from .files import make_writable

_PYTHONS = ("bin/python", "Scripts/python.exe")
LEVELS = ("none", "balanced", "aggressive", "ultra")


def add_arguments(commands: Any) -> None:
    """The command and its options."""
    plan = commands.add_parser("plan", help="predict peaks and times without running")
    plan.add_argument(
        "--model", metavar="MODEL", help="sdxl, flux, sd15, FOLDER, FILE.safetensors, GRAPH.json"
    )
    plan.add_argument("--size", type=int, help="edge of the image, pixels (a graph has its own)")
    plan.add_argument("--width", type=int, help="instead of --size")
    plan.add_argument("--height", type=int, help="instead of --size")
    plan.add_argument("--batch", type=int, help="images at once (1, or the graph's)")
    plan.add_argument("--steps", type=int, help="denoising steps (30, or the graph's)")
    plan.add_argument("--level", help="the level whose stages the JSON gives")
    plan.add_argument("--budget-gb", type=float, help="the most to be allocated on the device")
    plan.add_argument("--host-gb", type=float, help="the most weights in host memory")
    plan.add_argument("--pinned-gb", type=float, help="the most page-locked host memory")
    plan.add_argument("--dtype", choices=("float16", "bfloat16", "float32"))
    plan.add_argument("--card", help=f"a graphics card (default: this machine's or {DEFAULT_CARD})")
    plan.add_argument("--comfyui", type=Path, metavar="FOLDER", help="plan with that ComfyUI")
    plan.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    plan.add_argument(
        "--chart", type=Path, metavar="PNG", help="draw time over peak for budgets on three cards"
    )
    plan.add_argument("--published", action="store_true", help="beside published measurements")
    plan.add_argument("--speed", action="store_true", help="how long planning SDXL takes here")
    plan.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON, to FILE if given")
    plan.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Plan, and print."""
    if options.comfyui is not None and options.dtype is not None:
        raise ConfigError("--dtype has no effect with --comfyui, which chooses types; leave it out")
    if options.comfyui is not None and not options.inside:
        return _in_comfyui(options.comfyui, options.line)
    if options.json not in (None, "-"):
        make_writable("--json", Path(options.json))
    silence_libraries()
    if options.published or options.speed:
        from . import plan_speed, published

        result: Any = published.compare() if options.published else plan_speed.measure()
    elif options.chart is not None:
        result = _chart(options.chart)
    elif options.model is None:
        raise ConfigError("--model names what to plan: sdxl, flux, sd15, a folder or a file")
    else:
        result = planned(options)
    if options.json == "-":
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(result.text())
        if options.json is not None:
            text = json.dumps(result.to_dict(), indent=2) + "\n"
            Path(options.json).write_text(text, encoding="utf-8")
    return int(getattr(result, "failed", False))


def _chart(path: Path) -> Any:
    from . import plan_chart
    from .chart import WITHOUT_MATPLOTLIB

    make_writable("--chart", path)
    result = plan_chart.curves()
    if not plan_chart.draw(result, path):
        print(WITHOUT_MATPLOTLIB)
    return result


def planned(options: argparse.Namespace) -> Any:
    """The predictions of every level, and the plan of a budget."""
    from ..memory.kept_free import kept_free
    from ..memory.planner.cache import TraceCache
    from ..memory.planner.planner import Limits
    from ..memory.planner.predict import predict
    from ..memory.stores import folder
    from .planned import Planned

    started = time.perf_counter()
    _level(options.level)  # before anything is traced
    store = TraceCache(folder() / "traces")
    work, subject = _subject(options, store)
    profile = profile_of(options.card)
    budget = options.budget_gb if options.budget_gb is not None else subject.budget_gb
    asked = options.level or (None if budget is not None else subject.level)
    limits = Limits(
        *(
            None if given is None else gb_to_bytes(given)
            for given in (budget, None, options.host_gb, options.pinned_gb)
        )
    )
    kept = None
    if budget is not None:
        kept = kept_free(subject.models(), options.card)
        limits = replace(limits, margin=kept.margin)
    costs: dict[str, Any] = {
        "rates": profile,
        "workspace_factor": profile.workspace_factor,
        "context_bytes": profile.context_bytes,
    }
    result = Planned(subject.name, subject.engine, work, profile, limits, kept)
    for level in LEVELS:
        config = MemoryOptimizationConfig.from_level(level)
        result.rows[level] = predict(subject.turns(config), **costs)
    result.chosen = _level(asked)
    if limits.budget is not None:
        result.budget = subject.within(limits, work, costs)
        if result.budget.prediction is not None:
            result.rows["budget"] = result.budget.prediction
            if options.level is None:
                result.chosen = "budget"
        if work.batch > 1:
            result.largest_batch = subject.images_at_once(limits, costs)
    result.notes += subject.notes
    result.seconds = time.perf_counter() - started
    return result


def _subject(options: argparse.Namespace, store: Any) -> tuple[Any, Any]:
    from ..memory.planner.work import Work

    path = Path(options.model).expanduser()
    graph = path.suffix.lower() == ".json"
    width, height = (
        options.size if edge is None else edge for edge in (options.width, options.height)
    )
    asked = {"width": width, "height": height, "batch": options.batch, "steps": options.steps}
    given = {name: value for name, value in asked.items() if value is not None}
    if options.inside or "comfy.model_management" in sys.modules:
        from ..memory.adapters.comfy.plan_models import prepare
        from ..memory.adapters.comfy.plan_subject import comfy_subject

        if not path.is_file():
            raise ConfigError(
                f"--model {path} is no file; with ComfyUI give a checkpoint or a graph"
            )
        prepare(options.comfyui)
        subject = comfy_subject(path, given, store)
        return subject.traces.work, subject
    if graph:
        if not path.is_file():
            raise ConfigError(f"--model {path} is no file")
        raise ConfigError("a graph is planned with ComfyUI's own classes; add --comfyui FOLDER")
    from ..memory.adapters.plan_subject import pipeline_subject

    edge = SIZES.get(options.model, DEFAULT_SIZE)
    work = Work(**{"width": edge, "height": edge, **given})
    return work, pipeline_subject(options.model, work, store, options.dtype)


def _in_comfyui(folder: Path, arguments: list[str]) -> int:
    """The same command line, in a process of that ComfyUI's own Python."""
    folder = folder.expanduser().absolute()
    if not (folder / "comfy" / "model_management.py").is_file():
        raise ConfigError(f"--comfyui {folder} is no folder of ComfyUI: it has no comfy package")
    homes = [folder / name / part for name in (".venv", "venv") for part in _PYTHONS]
    python = next((str(home) for home in homes if home.is_file()), sys.executable)
    line = command("bench.cli", *arguments, "--inside")
    line[0] = python
    return subprocess.run(line, check=False).returncode


def _level(asked: str | None) -> str:
    if asked is None:
        return "none"
    level = SELECTOR[asked] if asked in SELECTOR else OptimizationLevel.parse(asked)
    if level in CHOSEN_FOR_YOU:
        return MemoryOptimizationConfig.auto().level.value
    return level.value
