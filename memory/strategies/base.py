"""What every strategy returns, and the two reversible changes they are made of.

A strategy's ``apply`` returns one outcome per component: :class:`Applied` with the function that
takes it back, or :class:`Skipped` with the reason. Undos run in the reverse order of application.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Undo: TypeAlias = Callable[[], None]
Method: TypeAlias = Callable[..., Any]

_ABSENT = object()


@dataclass(frozen=True)
class Applied:
    """A technique in force on one component."""

    strategy: str
    component: str
    detail: str
    undo: Undo = field(repr=False, compare=False)


@dataclass(frozen=True)
class Skipped:
    """A technique that was asked for and is not in force, and why."""

    strategy: str
    component: str
    reason: str


Outcome: TypeAlias = Applied | Skipped


def with_the_first() -> None:
    """The undo of an entry whose pipeline is put back by its first entry's undo."""


def undo_all(undos: Iterable[Undo]) -> None:
    """Run undos in the order given; each runs even if one before it failed.

    Raises:
        The first failure, after all have run.
    """
    first: Exception | None = None
    for undo in undos:
        try:
            undo()
        except Exception as failure:  # noqa: BLE001  one undo must not keep the others from running
            first = first or failure
    if first is not None:
        raise first


def override(owner: Any, name: str, value: Any) -> Undo:
    """Set an instance attribute; the undo puts back what the instance had, or had not."""
    own = vars(owner)
    previous = own.get(name, _ABSENT)
    own[name] = value

    def undo() -> None:
        if previous is _ABSENT:
            own.pop(name, None)
        else:
            own[name] = previous

    return undo


def wrap_method(owner: Any, name: str, around: Callable[[Method], Method]) -> Undo:
    """Replace a method on the instance by ``around(method)``, keeping its signature.

    Hazard: somebody may wrap ours before it is undone. Then theirs stays in place and ours, which
    it calls, passes everything through.
    """
    original = getattr(owner, name)
    inner = around(original)
    active = True

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return (inner if active else original)(*args, **kwargs)

    restore = override(owner, name, wrapped)

    def undo() -> None:
        nonlocal active
        active = False
        if vars(owner).get(name) is wrapped:
            restore()

    return undo


def then(action: Callable[[], None]) -> Callable[[Method], Method]:
    """For :func:`wrap_method`: run ``action`` once the method has returned."""

    def around(original: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            action()
            return result

        return run

    return around
