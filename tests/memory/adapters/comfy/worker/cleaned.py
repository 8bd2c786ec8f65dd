"""What a process holds after each of many prompts, none like another."""

from __future__ import annotations

from typing import Any

import psutil
from executed import done, fresh, held, runner
from workflows import text_to_image

SUBJECTS = ("a boat", "two boats", "a pier at night", "fog")


def after_prompts(
    count: int, levels: list[str], family: str, kind: str, cleanup: str = "always"
) -> list[dict[str, Any]]:
    """Bytes on the device and of RAM after each prompt, before anything else is done."""
    fresh()
    one, process, found = runner(kind), psutil.Process(), []
    for number in range(count):
        level = levels[number % len(levels)]
        text = f"{SUBJECTS[number % len(SUBJECTS)]}, {number}"
        graph = text_to_image(
            level=level, cleanup=cleanup, family=family, seed=number, text=text, steps=1
        )
        done(one, graph)
        allocated, reserved = held()
        found.append(
            {
                "level": level,
                "allocated": allocated,
                "reserved": reserved,
                "rss": process.memory_info().rss,
            }
        )
    fresh()
    return found
