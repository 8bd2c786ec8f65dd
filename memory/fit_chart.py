"""A picture of a check: peak against predicted time, a point for each way to run, and the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .units import GIB, format_bytes

if TYPE_CHECKING:
    import torch

    from .fit_check import Checked

WIDTH, HEIGHT = 960, 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 40, 60, 70
_PAPER, _INK, _GRID = (250, 250, 250), (40, 40, 40), (225, 225, 225)
_FITS, _OVER, _OPEN, _LIMIT = (0, 114, 178), (213, 94, 0), (110, 110, 110), (204, 51, 17)
"""Colours that differ for those who see red and green alike."""
_TICKS = 5
_ROOM = 1.15
_DOT = 7


def chart(found: Checked) -> torch.Tensor:
    """The picture as ComfyUI's IMAGE: (1, height, width, 3), float32, 0 to 1."""
    import torch
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=15)
    points = [
        (row.name, row.prediction.seconds or 0.0, row.need / GIB, row.fits) for row in found.rows
    ]
    limit = None if found.limit is None else found.limit / GIB
    longest = max((seconds for _, seconds, _, _ in points), default=0.0) * _ROOM or 1.0
    highest = max((need for _, _, need, _ in points), default=0.0)
    # A limit far above all of it would press the points to the ground.
    shown = limit is not None and (not highest or limit <= 3 * highest)
    highest = max(highest, limit if shown and limit is not None else 0.0) * _ROOM or 1.0

    def place(seconds: float, need: float) -> tuple[float, float]:
        across = (WIDTH - _LEFT - _RIGHT) * seconds / longest
        up = (HEIGHT - _TOP - _BOTTOM) * need / highest
        return _LEFT + across, HEIGHT - _BOTTOM - up

    for tick in range(_TICKS + 1):
        x, _ = place(longest * tick / _TICKS, 0)
        _, y = place(0, highest * tick / _TICKS)
        draw.line((x, _TOP, x, HEIGHT - _BOTTOM), fill=_GRID)
        draw.line((_LEFT, y, WIDTH - _RIGHT, y), fill=_GRID)
        draw.text((x, HEIGHT - _BOTTOM + 8), f"{longest * tick / _TICKS:.3g}", _INK, font, "ma")
        draw.text((_LEFT - 8, y), f"{highest * tick / _TICKS:.3g}", _INK, font, "rm")
    draw.text((WIDTH / 2, HEIGHT - 20), "predicted time, seconds", _INK, font, "ms")
    draw.text((_LEFT, _TOP - 12), "predicted peak, GB", _INK, font, "ls")
    if limit is not None:
        label = f"{found.limited_by}: {format_bytes(found.limit)}"
        if shown:
            _, y = place(0, limit)
            draw.line((_LEFT, y, WIDTH - _RIGHT, y), fill=_LIMIT, width=3)
        draw.text((WIDTH - _RIGHT, _TOP - 12), label, _LIMIT, font, "rs")
    for name, seconds, need, fits in points:
        x, y = place(seconds, need)
        colour = _OPEN if fits is None else _FITS if fits else _OVER
        draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=colour)
        right = x > WIDTH * 0.8
        draw.text((x + (-12 if right else 12), y - 9), name, colour, font, "rs" if right else "ls")
    if not points:
        draw.text((WIDTH / 2, HEIGHT / 2), "nothing could be predicted", _INK, font, "mm")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, HEIGHT, WIDTH, 3).float() / 255
