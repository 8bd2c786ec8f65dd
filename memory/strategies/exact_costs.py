"""What a program of ``exact_program`` takes on the device, from its layers' shapes.

Strips, maps kept on the device, and the little beside them: small layers' weights and the sample;
at the end the result. Scratch inside kernels (cuDNN's, for example) is not in it, nor are weights
that hooks bring for a layer and take away again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .exact_program import Attention, Block, Layer, Step

SCORES = 16
"""Bytes a query chunk may take per pair of tokens where attention has no fused kernel."""

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """How strips are to be run on one sample, in bytes.

    Attributes:
        room: of strips at once.
        keep: of maps that may lie on the device; the others wait in host memory.
        strips: the most that is on the device beside the maps.
        maps: the most that all maps together take, wherever they lie.
        ends: of the sample and the result, which lie on the device together when all is done.
    """

    room: int
    keep: int
    strips: int
    maps: int
    ends: int

    @property
    def peak(self) -> int:
        """The most that is on the device."""
        return max(self.strips + min(self.keep, self.maps), self.ends)

    @property
    def staging(self) -> str:
        """Where the maps wait, for a person."""
        if self.keep >= self.maps:
            return "on the device"
        return "on the device where they fit" if self.keep else "in host memory"


@dataclass(frozen=True)
class _Pass:
    """A layer and its maps: heights and widths, of the input once doubled and of the output."""

    layer: Layer
    high: int
    wide: int
    rows: int
    columns: int


def plan(
    program: tuple[Step, ...],
    shape: Shape,
    itemsize: int,
    edge: int,
    limit: int | None = None,
    keep: int = 0,
) -> Plan:
    """Strips at the memory of a tile of ``edge`` input pixels, lower where ``limit`` wants it.

    Args:
        shape: of the sample, (N, C, H, W).
        limit: bytes there are; maps lie on the device as far as strips leave room under it.
        keep: bytes of maps on the device where there is no ``limit``.
    """
    room = room_for(program, edge * edge, itemsize)
    sample, result = _ends(program, shape, itemsize)
    beside = _weights(program, itemsize) + sample
    if limit is not None:
        room = max(1, min(room, limit - beside))
    strips = beside + _strips(program, shape, itemsize, room)
    if limit is not None:
        keep = max(0, limit - strips)
    return Plan(room, keep, strips, _maps(program, shape, itemsize, room), sample + result)


def whole(program: tuple[Step, ...], shape: Shape, itemsize: int) -> int:
    """Bytes the hungriest layer takes when the sample goes through whole."""
    return shape[0] * room_for(program, shape[2] * shape[3], itemsize)


def layers_of(program: tuple[Step, ...]) -> Iterator[Layer]:
    """The convolutions of a program whose maps have an area, in order."""
    for step in program:
        if isinstance(step, Layer):
            yield step
        elif isinstance(step, Block):
            yield from (step.first, step.second)


def scale_of(program: tuple[Step, ...]) -> float:
    """Output pixels per input pixel of an edge: 8 for most decoders, an eighth for encoders."""
    scale = 1.0
    for layer in layers_of(program):
        scale *= (2 if layer.doubled else 1) / layer.conv.stride[0]
    return scale


def room_for(program: tuple[Step, ...], area: int, itemsize: int) -> int:
    """Bytes the hungriest layer of a tile of ``area`` input pixels takes when it runs whole.

    Its input, that again normalised or doubled, and half more than its output.
    """
    scale, largest = 1.0, 0
    for layer in layers_of(program):
        inner = scale * (2 if layer.doubled else 1)
        scale = inner / layer.conv.stride[0]
        maps = 2 * layer.conv.in_channels * inner**2 + 1.5 * layer.conv.out_channels * scale**2
        largest = max(largest, int(area * maps * itemsize))
    return largest


def pass_of(layer: Layer, high: int, wide: int) -> _Pass:
    """The pass of a layer over a map of ``high`` by ``wide`` pixels."""
    conv = layer.conv
    high, wide = (length * (2 if layer.doubled else 1) for length in (high, wide))
    left, right, top, bottom = layer.padding
    rows = (high + top + bottom - conv.kernel_size[0]) // conv.stride[0] + 1
    columns = (wide + left + right - conv.kernel_size[1]) // conv.stride[1] + 1
    return _Pass(layer, high, wide, rows, columns)


def strip_height(one: _Pass, images: int, itemsize: int, room: int) -> int:
    """Output rows of a strip that takes at most ``room`` bytes; one at least."""
    row, halo = _row(one, images, itemsize)
    return max(1, min(one.rows, (room - halo) // row))


def attention_bytes(step: Attention, count: int, itemsize: int) -> tuple[int, int]:
    """Bytes of an image's keys and values for ``count`` tokens, and of one query beside them."""
    channels = step.norm.num_channels
    return 2 * count * channels * itemsize, step.heads * count * SCORES + beside(step, itemsize)


def beside(step: Attention, itemsize: int) -> int:
    """Bytes of one query's tokens on their way through attention."""
    return int(step.norm.num_channels * (6 * itemsize + 4))


def _row(one: _Pass, images: int, itemsize: int) -> tuple[int, int]:
    """Bytes per output row of a strip, and of the rows its convolution needs beyond it."""
    conv = one.layer.conv
    wide = 0 if itemsize == 4 or one.layer.norm is None else 4
    before = images * one.wide * conv.in_channels * (2 * itemsize + wide)
    after = images * one.columns * conv.out_channels * 3 * itemsize
    return conv.stride[0] * before + after, (conv.kernel_size[0] - 1) * before


def _walk(
    program: tuple[Step, ...], shape: Shape
) -> Iterator[tuple[Step, list[_Pass], tuple[int, int, int]]]:
    """Every step with its passes, and the channels, height and width of the map it starts from."""
    _, channels, high, wide = shape
    for step in program:
        before = channels, high, wide
        passes: list[_Pass] = []
        layers = layers_of((step,))
        for layer in layers:
            one = pass_of(layer, high, wide)
            passes.append(one)
            channels, high, wide = layer.conv.out_channels, one.rows, one.columns
        yield step, passes, before


def _strips(program: tuple[Step, ...], shape: Shape, itemsize: int, room: int) -> int:
    largest = 0
    for step, passes, (_, high, wide) in _walk(program, shape):
        for one in passes:
            row, halo = _row(one, shape[0], itemsize)
            height = strip_height(one, shape[0], itemsize, room)
            largest = max(largest, halo + row * height)
        if isinstance(step, Attention):
            count = high * wide
            held, query = attention_bytes(step, count, itemsize)
            needed = held + count * query
            largest = max(largest, min(max(room, shape[0] * query), shape[0] * needed))
    return largest


def _weights(program: tuple[Step, ...], itemsize: int) -> int:
    """Of small layers, copied: attention's matrices, or a block's shortcut."""
    largest = 0
    for step in program:
        if isinstance(step, Attention):
            four = (step.query, step.key, step.value, step.out)
            largest = max(largest, sum(_elements(part) for part in four))
        elif isinstance(step, Block) and step.shortcut is not None:
            largest = max(largest, _elements(step.shortcut))
    return largest * itemsize


def _elements(module: Any) -> int:
    return sum(int(weight.numel()) for weight in module.parameters(recurse=False))


def _ends(program: tuple[Step, ...], shape: Shape, itemsize: int) -> tuple[int, int]:
    """Bytes of the sample and of the result."""
    images, channels, high, wide = shape
    scale = scale_of(program)
    last = list(layers_of(program))[-1].conv.out_channels
    pixels = images * high * wide * itemsize
    return pixels * channels, int(pixels * last * scale**2)


def _maps(program: tuple[Step, ...], shape: Shape, itemsize: int, room: int) -> int:
    """The most that maps take which are alive together; the sample is none of them."""
    images = shape[0]

    def size(one: _Pass) -> int:
        return int(images * one.layer.conv.out_channels * one.rows * one.columns * itemsize)

    current = most = 0
    for step, passes, (channels, high, wide) in _walk(program, shape):
        if isinstance(step, Attention):
            current = current or images * channels * high * wide * itemsize
            held, _ = attention_bytes(step, high * wide, itemsize)
            waiting = 0 if images * held <= room // 2 else images * held
            most = max(most, current + waiting)
            continue
        made = [size(one) for one in passes]
        if isinstance(step, Block) and step.shortcut is None and current:
            most = max(most, current + made[0])
        else:
            most = max(most, current + sum(made))
        current = made[-1]
    return most
