from __future__ import annotations

import inspect

import pytest
from lowtide.memory.strategies.base import override, undo_all, wrap_method


class Thing:
    def speak(self, word: str, *, loud: bool = False) -> str:
        return word.upper() if loud else word


def test_a_wrapped_method_keeps_its_signature_and_is_put_back() -> None:
    thing = Thing()
    undo = wrap_method(thing, "speak", lambda original: lambda *a, **k: original(*a, **k) + "!")
    assert thing.speak("hi", loud=True) == "HI!"
    assert inspect.signature(thing.speak) == inspect.signature(Thing().speak)
    undo()
    assert thing.speak("hi") == "hi"
    assert vars(thing) == {}


def test_a_wrapper_around_ours_survives_and_ours_passes_through() -> None:
    thing = Thing()
    undo = wrap_method(thing, "speak", lambda original: lambda *a, **k: original(*a, **k) + "!")
    ours = thing.speak
    theirs = lambda *a, **k: "<" + ours(*a, **k) + ">"  # noqa: E731
    thing.speak = theirs  # type: ignore[method-assign]
    undo()
    assert thing.speak is theirs
    assert thing.speak("hi") == "<hi>"


def test_override_restores_a_value_or_its_absence() -> None:
    thing = Thing()
    undo = override(thing, "colour", "red")
    inner = override(thing, "colour", "blue")
    inner()
    assert vars(thing) == {"colour": "red"}
    undo()
    assert vars(thing) == {}


def test_every_undo_runs_and_the_first_failure_is_raised() -> None:
    ran: list[str] = []

    def fails() -> None:
        ran.append("fails")
        raise ValueError("first")

    def fails_too() -> None:
        raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        undo_all([fails, fails_too, lambda: ran.append("last")])
    assert ran == ["fails", "last"]
