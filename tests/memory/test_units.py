"""Bytes and how people read them."""

import math

import pytest
from lowtide.memory.errors import ConfigError
from lowtide.memory.units import GIB, KIB, MIB, bytes_to_gb, format_bytes, gb_to_bytes, parse_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KB"),
        (25 * MIB + 838861, "25.8 MB"),
        (GIB + GIB // 2, "1.50 GB"),
        (-3 * MIB, "-3.0 MB"),
    ],
)
def test_bytes_are_rendered_with_the_unit_that_fits(count, text):
    assert format_bytes(count) == text


def test_gb_are_of_1024_cubed_and_come_back():
    assert gb_to_bytes(1.5) == 3 * GIB // 2
    assert bytes_to_gb(gb_to_bytes(6.25)) == 6.25
    assert gb_to_bytes(0) == 0


@pytest.mark.parametrize("number", [-0.5, 1e300, math.inf, math.nan])
def test_no_size_is_negative_or_endless(number):
    with pytest.raises(ConfigError, match="finite number of GB"):
        gb_to_bytes(number)


@pytest.mark.parametrize(
    ("text", "count"),
    [("512M", 512 * MIB), ("1.5G", 3 * GIB // 2), ("64KiB", 64 * KIB), (" 4096 ", 4096)],
)
def test_sizes_are_read_with_binary_suffixes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "lots", "-1G", "1T", "G", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="write for example 512M"):
        parse_bytes(text)
