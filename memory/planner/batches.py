"""The largest batch that fits, asked of as few sizes as possible: each has to be traced."""

from __future__ import annotations

from collections.abc import Callable

MOST = 64
"""Images at once that are asked for at most."""


def largest_batch(need: Callable[[int], int], budget: int, most: int = MOST) -> int:
    """The largest batch up to ``most`` whose need in bytes is at most ``budget``; 0 = not even one.

    Args:
        need: the smallest budget of a batch. It grows with the batch, nearly in a straight line,
            along which the next size to ask for is guessed.
    """
    known: dict[int, int] = {}

    def fits(batch: int) -> bool:
        known[batch] = need(batch)
        return known[batch] <= budget

    if not fits(1):
        return 0
    if most < 2 or not fits(2):
        return 1
    low, high = 2, most + 1
    while high - low > 1:
        other = high if high in known else max(batch for batch in known if batch < low)
        slope = max(1.0, (known[other] - known[low]) / (other - low))
        guess = low + int((budget - known[low]) / slope)
        if len(known) % 4 == 0:
            guess = (low + high) // 2  # where the need bends, lines may mislead for long
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
    return low


def said(largest: int) -> str:
    """A largest batch for people: of more than ``MOST`` nobody asked."""
    return f"{largest} or more" if largest >= MOST else str(largest)


def split(batch: int, at_once: int) -> list[int]:
    """``batch`` images in as few parts as ``at_once`` allows, about equally large."""
    parts = -(-batch // max(1, at_once))
    whole, more = divmod(batch, parts)
    return [whole + (number < more) for number in range(parts)]
