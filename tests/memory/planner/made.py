"""A small trace made by hand: three layers in a row, one of them in a block of a list."""

from __future__ import annotations

from lowtide.memory.planner.trace import (
    ALLOCATED,
    COMPUTED,
    ENTERED,
    FREED,
    LEFT,
    Operation,
    Trace,
    Weight,
    coded,
)

MIB = 1 << 20


def made(weight: int = 4 * MIB, activation: int = 2 * MIB, flops: int = 10**9) -> Trace:
    """Each layer reads the one before's output and has ``weight`` bytes in float16."""
    names = ("first", "blocks.0.inner", "last")
    modules = (
        ("", "Model", 0),
        ("first", "Linear", 0),
        ("blocks", "ModuleList", 0),
        ("blocks.0", "Block", 2),
        ("blocks.0.inner", "Linear", 3),
        ("last", "Linear", 0),
    )
    owners = (1, 4, 5)
    weights = tuple(
        Weight(f"{name}.weight", owner, weight, weight // 2, "float16", 2)
        for name, owner in zip(names, owners, strict=True)
    )
    events = [coded(ALLOCATED, 0), coded(ENTERED, 0)]
    operations = []
    for index, owner in enumerate(owners):
        operations.append(Operation("addmm", flops, weight, activation, owner, (index,)))
        events += [
            coded(ENTERED, owner),
            coded(ALLOCATED, index + 1),
            coded(COMPUTED, index),
            coded(LEFT, owner),
        ]
        if index:
            events.append(coded(FREED, index))
    events.append(coded(LEFT, 0))
    return Trace(
        modules, weights, (activation,) * 4, 1, tuple(operations), tuple(events), (3,), 0.1
    )
