"""What ``bench`` measures instead of the levels: budgets, VAEs, prompts inside ComfyUI."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..memory.adapters.quiet import silence_libraries
from ..memory.errors import ConfigError
from . import places
from .files import make_writable


def budgets(options: argparse.Namespace) -> int:
    """Random budgets."""
    if options.json is not None:
        make_writable("--json", options.json)
    silence_libraries()
    from .budgets import bench_budgets

    place = places.choose(options.device, options.simulate, options.capacity)
    if place.simulated is None:
        raise ConfigError("--budgets counts bytes moved, which takes --simulate cuda (or npu)")
    told = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    result = bench_budgets(place, options.budgets, told=told)
    say(result, options)
    return int(result.failed)


def vae(options: argparse.Namespace) -> int:
    """Exact tiles beside blended ones."""
    from .vae import DTYPES as TYPES
    from .vae import WORKS, bench_vae

    works = options.works.split(",")
    size = options.size or 512
    if not set(works) <= set(WORKS):
        raise ConfigError(f"--works {options.works} names no work of a VAE; give decode,encode")
    if size % 64 or size < 320:
        raise ConfigError(
            f"--size {size} does not suit tiles of 256 pixels; give a multiple of 64 from 320"
        )
    if options.json is not None:
        make_writable("--json", options.json)
    silence_libraries()
    place = places.choose(options.device, options.simulate, options.capacity)
    dtypes = TYPES if options.dtype is None else (options.dtype,)
    result = bench_vae(
        options.vae,
        place,
        size=size,
        dtypes=dtypes,
        works=works,
        told=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return say(result, options)


def prompts(options: argparse.Namespace) -> int:
    """The same prompts in turns, in every ComfyUI found."""
    from . import overhead, releasing, sampling

    kinds: dict[str, Any] = {"overhead": overhead, "releasing": releasing, "sampling": sampling}
    name, *others = (kind for kind in kinds if getattr(options, kind))
    if options.peers or options.chart is not None or others:
        raise ConfigError(f"--{name} takes neither --peers nor --chart, nor another of its kind")
    if options.json is not None:
        make_writable("--json", options.json)
    kind = kinds[name]
    result = kind.bench(
        places.choose(options.device, options.simulate, options.capacity),
        pairs=options.pairs or kind.PAIRS,
        size=options.size or kind.SIZE,
        steps=options.steps or kind.STEPS,
    )
    say(result, options)
    return 1 if result.exceeded else 0


def say(result: Any, options: argparse.Namespace) -> int:
    """Print a result, and write it where --json says."""
    print(result.text())
    if options.json is not None:
        options.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return 0
