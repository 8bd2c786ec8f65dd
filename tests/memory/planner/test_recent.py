"""What was met lately is at hand, bounded, and by its whole name."""

from __future__ import annotations

from lowtide.memory.planner.recent import Recent


def test_the_ones_used_last_stay() -> None:
    held: Recent[int] = Recent(2)
    held.put("a", 1)
    held.put("b", 2)
    assert held.get("a") == 1
    held.put("c", 3)
    assert (held.get("a"), held.get("b"), held.get("c")) == (1, None, 3)
    held.clear()
    assert held.get("a") is None
