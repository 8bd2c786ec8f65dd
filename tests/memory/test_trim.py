"""The heap's unused pages go back to the system, by the call the platform has."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from lowtide.memory import trim
from lowtide.memory.host import process_rss
from lowtide.memory.trim import trim_host
from lowtide.memory.units import MIB


class Library:
    """A C runtime that has one function and remembers how it was called."""

    def __init__(self, name: str | None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        if name is not None:
            setattr(self, name, self._call)

    @property
    def _call(self) -> Any:
        library = self

        class Function:
            argtypes: Any = None
            restype: Any = None

            def __call__(self, *args: Any) -> int:
                library.calls.append(args)
                return 0

        return Function()


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Any:
    def become(name: str, function: str | None) -> tuple[Library, list[Any]]:
        library, opened = Library(function), []

        def load(path: Any) -> Library:
            opened.append(path)
            return library

        monkeypatch.setattr(trim.sys, "platform", name)
        monkeypatch.setattr(trim.ctypes, "CDLL", load)
        return library, opened

    return become


@pytest.mark.parametrize(
    ("name", "function", "path", "arguments"),
    [
        ("linux", "malloc_trim", None, (0,)),
        ("darwin", "malloc_zone_pressure_relief", None, (None, 0)),
        ("win32", "_heapmin", "ucrtbase", ()),
    ],
)
def test_each_platform_has_its_call(
    platform: Any, name: str, function: str, path: str | None, arguments: tuple[Any, ...]
) -> None:
    library, opened = platform(name, function)
    assert trim_host() == function
    assert (opened, library.calls) == ([path], [arguments])


def test_a_runtime_without_the_call_trims_nothing(platform: Any) -> None:
    library, _ = platform("linux", None)
    assert trim_host() is None
    assert library.calls == []


def test_freed_heap_really_goes_back() -> None:
    if getattr(ctypes.CDLL(None), "malloc_trim", None) is None:
        assert trim_host() is None
        return
    trim_host()
    blocks = [bytearray(60_000) for _ in range(1500)]
    last = bytearray(60_000)
    full = process_rss()
    del blocks
    assert trim_host() == "malloc_trim"
    assert full - process_rss() > 40 * MIB
    assert len(last) == 60_000
