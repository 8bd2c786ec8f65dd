"""Lets go of the tensors a failed run's traceback keeps alive.

An exception holds its frames, and the frames their locals: after an out-of-memory error that is
often what fills the device. Clearing a frame is not enough where a nested function was running,
as in every hooked torch module: the cells it shares with its parent belong to the function.
"""

from __future__ import annotations

import gc
import types
from collections import Counter
from collections.abc import Iterator

from .tensors import any_on_accelerator


def forget_locals(error: BaseException) -> None:
    """Drop the locals of ``error``'s finished frames, and those of the errors it came from.

    The traceback still prints; a post-mortem debugger finds no variables in it. Frames that are
    still running, such as the one that handles the error, keep theirs.
    """
    frames = list(_frames(error))
    cells: Counter[int] = Counter()
    known: dict[int, types.CellType] = {}
    running: set[int] = set()
    for frame in frames:
        own = [found for found in gc.get_referents(frame) if isinstance(found, types.CellType)]
        known.update((id(cell), cell) for cell in own)
        try:
            frame.clear()
        except RuntimeError:
            running.update(id(cell) for cell in own)
        else:
            cells.update({id(cell) for cell in own})
            # A call of locals(), as in diffusers' step callbacks, left a copy in the frame (until
            # Python 3.13) that clearing does not reach: asking again brings it up to date.
            _ = frame.f_locals
    # A cell in two finished frames was made by one for the other. Others may outlive the run.
    for key, count in cells.items():
        if count > 1 and key not in running:
            _empty(known[key])


def _frames(error: BaseException) -> Iterator[types.FrameType]:
    """Each frame once, of the error's traceback and of its causes' and contexts'."""
    errors: set[int] = set()
    frames: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in errors:
            continue
        errors.add(id(current))
        pending += [current.__cause__, current.__context__]
        trace = current.__traceback__
        while trace is not None:
            if id(trace.tb_frame) not in frames:
                frames.add(id(trace.tb_frame))
                yield trace.tb_frame
            trace = trace.tb_next


def _empty(cell: types.CellType) -> None:
    """Empty a cell that holds device memory; functions and settings stay usable."""
    try:
        contents = cell.cell_contents
    except ValueError:
        return
    if any_on_accelerator(contents):
        del cell.cell_contents
