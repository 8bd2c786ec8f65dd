"""Names and texts of strangers are bounded, and act on nothing."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowtide.memory.adapters.comfy.overlay import tidy

HOSTILE = {
    "long": "x" * 10_000,
    "null": "model\x00.safetensors",
    "escape": "\x1b[31mred\x1b[0m",
    "turned": "photo\u202egnp.exe",
    "isolated": "a\u2066b\u2069c",
    "lines": "one\ntwo\u2028three",
    "half": "a\ud800b",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("make, most", [(tidy.name, tidy.NAME), (tidy.line, tidy.LINE)])
def test_a_name_is_bounded_and_acts_on_nothing(value: str, make, most: int) -> None:
    found = make(value)
    assert 0 < len(found) <= most
    assert not any(unicodedata.category(it) in ("Cc", "Cs") for it in found)
    assert not set(found) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


@pytest.mark.parametrize(
    "value", ["مرحبا", "שלום עולם", "モデル", "👩‍👩‍👧‍👦 🏳️‍🌈", "<img src=x onerror=alert(1)>"]
)
def test_letters_emoji_and_markup_stay_data(value: str) -> None:
    assert tidy.name(value) == tidy.line(value) == value


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/models/checkpoints/a b.safetensors", "a b.safetensors"),
        ("C:\\models\\sd\\x.ckpt", "x.ckpt"),
        ("sub/folder/", "folder"),
        ("///", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_of_a_path_the_last_part_is_shown(path: str, name: str) -> None:
    assert tidy.name(path) == name


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no such file: '/srv/secret/place/x.pt'", "no such file: 'x.pt'"),
        ("at C:\\Users\\me\\x.pt, line 3", "at x.pt, line 3"),
        ("see ~/secret/x.pt", "see x.pt"),
        ("3.1 GB/s and/or 1/2 of a/b", "3.1 GB/s and/or 1/2 of a/b"),
    ],
)
def test_a_text_names_no_place_on_the_machine(said: str, shown: str) -> None:
    assert tidy.line(said) == tidy.text(said) == shown


def test_a_text_keeps_its_lines_and_its_bound() -> None:
    assert tidy.text("a\n  b\r\x07") == "a\n  b "
    assert len(tidy.text("x\n" * 100_000)) == tidy.TEXT


@given(st.text(max_size=300))
def test_whatever_comes_can_be_sent(value: str) -> None:
    for make in (tidy.name, tidy.line, tidy.text):
        json.dumps(make(value)).encode("ascii")
        assert make(make(value)) == make(value)
