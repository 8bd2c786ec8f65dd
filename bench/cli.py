"""``python -m lowtide``: bench, demo, history, info, plan."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..memory.adapters.quiet import silence_libraries
from ..memory.errors import ConfigError, LowtideError
from ..memory.levels import OptimizationLevel
from . import history, instead, places, plan
from .files import make_writable
from .instead import say
from .levels import DEFAULT_LEVELS
from .models import MODELS, check_host_memory, model_of

DTYPES = ("float16", "bfloat16", "float32")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status is 0, or 1 after an error explained on stderr."""
    options = parser().parse_args(arguments)
    options.line = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with history.left_out():
            return int(options.command(options) or 0)
    except LowtideError as error:
        print(f"lowtide: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lowtide: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    what = "Measure or predict what Lowtide's levels save, and what they cost."
    top = argparse.ArgumentParser(prog="lowtide", description=what)
    commands = top.add_subparsers(required=True, metavar="{bench,demo,history,info,plan}")
    _bench_arguments(commands.add_parser("bench", help="a table of the levels on one model"))
    _demo_arguments(commands.add_parser("demo", help="the example graph at all four levels"))
    history.add_to(commands)
    plan.add_arguments(commands)
    info = commands.add_parser("info", help="what devices there are, and what auto would choose")
    _simulation_arguments(info)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(command=_info)
    return top


def _bench_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--model", default="tiny", metavar="NAME", help=", ".join(MODELS))
    bench.add_argument("--size", type=_positive, help="edge of the image, pixels")
    bench.add_argument("--steps", type=_positive, help="denoising steps")
    bench.add_argument(
        "--levels",
        type=parse_levels,
        default=parse_levels(",".join(DEFAULT_LEVELS)),
        help="comma-separated (default: %(default)s)",
        metavar="LEVELS",
    )
    bench.add_argument("--dtype", choices=DTYPES, help="type of the weights")
    _where_arguments(bench)
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    bench.add_argument("--chart", type=Path, metavar="PNG", help="draw the levels' peaks to PNG")
    bench.add_argument(
        "--peers",
        action="store_true",
        help="with --model sdxl-small: diffusers' own modes and installed packages as rows too",
    )
    bench.add_argument(
        "--float8",
        action="store_true",
        help="instead: what FP8 storage saves and loses, on the shapes of three families",
    )
    bench.add_argument(
        "--vae",
        metavar="NAME",
        help="exact VAE tiling beside blended tiles: small, small-16, full, full-16",
    )
    bench.add_argument(
        "--works", default="decode,encode", help="with --vae: decode, encode (default: both)"
    )
    bench.add_argument(
        "--overhead",
        action="store_true",
        help="what Optimize Pipeline costs at level none, in every ComfyUI found",
    )
    bench.add_argument(
        "--releasing",
        action="store_true",
        help="what giving memory back between nodes costs, in every ComfyUI found",
    )
    bench.add_argument(
        "--sampling",
        action="store_true",
        help="what the overlay's samples cost, in every ComfyUI found",
    )
    bench.add_argument(
        "--budgets",
        type=_positive,
        metavar="COUNT",
        help="random budgets: kept, same images, no more moved than by diffusers' modes",
    )
    bench.add_argument(
        "--pairs",
        type=_positive,
        help="with --overhead, --releasing or --sampling: how often each runs",
    )
    bench.set_defaults(command=_bench)


def _demo_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for images and chart")
    _simulation_arguments(demo)
    demo.set_defaults(command=_demo)


def _where_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="a torch device, such as cuda:0 or cpu")
    _simulation_arguments(command)


def _simulation_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--simulate", choices=places.FLAVOURS, help="use the simulated accelerator, in this flavour"
    )
    command.add_argument(
        "--capacity", help=f"its memory, such as 8G (default: {places.DEFAULT_CAPACITY})"
    )


def parse_levels(text: str) -> list[OptimizationLevel]:
    """``none,ultra`` as levels, without repetition.

    Raises:
        argparse.ArgumentTypeError: an unknown level; the message lists the choices.
    """
    try:
        levels = [OptimizationLevel.parse(part) for part in text.split(",")]
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return list(dict.fromkeys(levels))


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _bench(options: argparse.Namespace) -> int:
    if options.float8:
        return _float8(options)
    if options.budgets is not None:
        return instead.budgets(options)
    if options.vae is not None:
        return instead.vae(options)
    if options.overhead or options.releasing or options.sampling:
        return instead.prompts(options)
    if options.pairs is not None:
        raise ConfigError("--pairs counts runs of --overhead, --releasing or --sampling; add one")
    model = model_of(options.model)
    size = options.size or model.size
    steps = options.steps or model.steps
    dtype = options.dtype or model.dtype
    if size % 16 or size < 64:
        raise ConfigError(f"--size {size} does not suit the models; give a multiple of 16 from 64")
    if options.peers and options.chart is not None:
        raise ConfigError("--chart draws the levels; leave it out with --peers")
    for option, path in (("--json", options.json), ("--chart", options.chart)):
        if path is not None:
            make_writable(option, path)
    silence_libraries()
    result: Any
    if options.peers:
        from .peers import bench_peers

        result = bench_peers(
            model, size=size, steps=steps, dtype=dtype, levels=options.levels, where=options
        )
    else:
        from .levels import bench_levels

        place = places.choose(options.device, options.simulate, options.capacity)
        on_host = place.simulated is not None or place.device.type == "cpu"
        check_host_memory(model, dtype, size, on_host)
        result = bench_levels(
            model, place, size=size, steps=steps, dtype=dtype, levels=options.levels
        )
    say(result, options)
    if options.chart is not None:
        _draw(result, options.chart)
    return 1 if all(row.error for row in result.rows) else 0


def _float8(options: argparse.Namespace) -> int:
    usual = vars(parser().parse_args(["bench"]))
    used = {"float8", "json", "command", "line"}
    for name, value in vars(options).items():
        if name not in used and value != usual[name]:
            raise ConfigError(f"--{name} has no effect with --float8; leave it out")
    if options.json is not None:
        make_writable("--json", options.json)
    silence_libraries()
    from .float8 import bench_float8

    result = bench_float8()
    return say(result, options)


def _draw(result: Any, path: Path) -> None:
    from .chart import WITHOUT_MATPLOTLIB, write_chart

    title = f"{result.model.key}, {result.size} px, {result.dtype}, on {result.place.name}"
    if not write_chart(result.rows, title, path):
        print(WITHOUT_MATPLOTLIB)


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    silence_libraries()
    return run_demo(places.choose(None, options.simulate, options.capacity), options.out)


def _info(options: argparse.Namespace) -> int:
    from . import info

    if options.simulate is None and options.capacity is not None:
        raise ConfigError(places.capacity_unused(options.capacity))
    if options.simulate is not None:
        places.choose(None, options.simulate, options.capacity)
    print(json.dumps(info.devices(), indent=2) if options.json else info.text())
    return 0
