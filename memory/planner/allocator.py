"""Replays allocations through a model of torch's caching allocator: what it hands out and reserves.

Sizes are rounded to 512 bytes and cut from segments: 2 MiB for up to 1 MiB, 20 MiB for up to
10 MiB, else the size up to the next 2 MiB. The smallest free block that holds a request is taken;
what is left of it is split off where 512 bytes (small) or more than 1 MiB (large) are left, and
counts as allocated where it is not. Neighbours merge when they are freed. One stream, and no
expandable segments: see the allocator's notes in torch's documentation.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from ..units import MIB

ROUNDING = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT = 10 * MIB
_STEP = 2 * MIB


class _Block:
    __slots__ = ("free", "next", "number", "previous", "size", "small")

    def __init__(self, number: int, size: int, small: bool) -> None:
        self.number = number
        self.size = size
        self.small = small
        self.free = False
        self.previous: _Block | None = None
        self.next: _Block | None = None


class CachingAllocator:
    """Counts bytes as torch's allocator would; :meth:`malloc` gives a handle for :meth:`release`.

    Attributes:
        allocated, reserved: bytes at this moment.
        peak_allocated, peak_reserved: the most since :meth:`reset_peaks`.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._blocks: dict[int, _Block] = {}
        self._cached: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._made = 0

    def malloc(self, nbytes: int) -> int:
        """Take ``nbytes``; 0 for none, as torch allocates nothing for an empty tensor."""
        if nbytes <= 0:
            return 0
        size = -(-nbytes // ROUNDING) * ROUNDING
        small = size <= _SMALL
        cached = self._cached[small]
        index = bisect_left(cached, (size, 0))
        if index < len(cached):
            block = self._blocks[cached.pop(index)[1]]
        else:
            segment = _segment(size)
            self.reserved += segment
            if self.reserved > self.peak_reserved:
                self.peak_reserved = self.reserved
            block = self._block(segment, small)
        block.free = False
        left = block.size - size
        if left >= ROUNDING if small else left > _SMALL:
            self._split(block, size)
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block.number

    def release(self, handle: int) -> None:
        """Give back what :meth:`malloc` gave; its segment stays reserved."""
        if not handle:
            return
        block = self._blocks[handle]
        self.allocated -= block.size
        before, after = block.previous, block.next
        if after is not None and after.free:
            self._absorb(block, after)
        if before is not None and before.free:
            self._uncache(before)
            self._merge(before, block)
            block = before
        block.free = True
        insort(self._cached[block.small], (block.size, block.number))

    def empty_cache(self) -> int:
        """Give segments back that hold nothing; returns the bytes."""
        freed = 0
        for cached in self._cached.values():
            for size, number in list(cached):
                block = self._blocks[number]
                if block.previous is None and block.next is None:
                    cached.remove((size, number))
                    del self._blocks[number]
                    freed += size
        self.reserved -= freed
        return freed

    def reset_peaks(self) -> None:
        """Begin a stage: peaks are what there is now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _block(self, size: int, small: bool) -> _Block:
        self._made += 1
        block = self._blocks[self._made] = _Block(self._made, size, small)
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = self._block(block.size - size, block.small)
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next, block.size = rest, size
        rest.free = True
        insort(self._cached[rest.small], (rest.size, rest.number))

    def _absorb(self, block: _Block, after: _Block) -> None:
        self._uncache(after)
        self._merge(block, after)

    def _merge(self, block: _Block, after: _Block) -> None:
        block.size += after.size
        block.next = after.next
        if after.next is not None:
            after.next.previous = block
        del self._blocks[after.number]

    def _uncache(self, block: _Block) -> None:
        cached = self._cached[block.small]
        cached.pop(bisect_left(cached, (block.size, block.number)))


def _segment(size: int) -> int:
    if size <= _SMALL:
        return _SMALL_SEGMENT
    if size < _OWN_SEGMENT:
        return _LARGE_SEGMENT
    return -(-size // _STEP) * _STEP
