"""Figures as the overlay writes them."""

from __future__ import annotations

GIB = 1 << 30


def short(count: int) -> str:
    """Bytes as the chip writes them."""
    value = count / GIB
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def figures(count: int | None) -> str:
    """Bytes as tables and badges write them."""
    if count is None:
        return "\u2013"
    for unit, size, digits in (("GB", GIB, 2), ("MB", 1 << 20, 1), ("KB", 1 << 10, 1)):
        if abs(count) >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count} B"


def heat(share: float) -> tuple[int, int, int]:
    """Red, green, blue of a node that cost that share of the most: hsl from blue to red."""
    import colorsys

    hue = round(220 - 220 * share)
    red, green, blue = colorsys.hls_to_rgb(hue / 360, 0.36, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
