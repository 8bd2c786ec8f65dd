"""Published figures of common cards, until this machine has measured its own.

Makers publish peaks; a program gets part of them. The parts are assumptions, named below, and
every profile made here says so. Peaks:

- GeForce 30: NVIDIA, Ampere GA102 architecture white paper; RTX 3060 by its product page.
- GeForce 40: NVIDIA, Ada GPU architecture white paper. GeForce 50: RTX Blackwell white paper.
  Both: dense tensor-core rate with FP16 inputs and FP32 accumulation, twice the FP32 rate.
- A100 (A100 Tensor Core GPU data sheet), T4 (T4 data sheet).
- Radeon RX 7900 XTX: AMD's product page, peak half precision.
- Apple M1 and M2: Apple's press releases; the rate of FP32, which half precision is counted with
  too (P. Turner's metal-benchmarks finds the same rate for both). For later chips Apple publishes
  no such rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .profile import DeviceProfile
from .units import MIB

TERA, GIGA = 1e12, 1e9

PRODUCTS = {"nvidia": 0.8, "amd": 0.6, "apple": 0.7}
"""Part of the published peak that large products are assumed to reach, by maker."""

MEMORY = 0.85
"""Part of the published bandwidth that a copy on the device is assumed to reach."""

PINNED, PAGEABLE = 0.75, 0.35
"""Parts of the link's rate that copies are assumed to reach: people report 11 to 13 of the 15.75
GB/s of PCI Express 3 from pinned memory. Ordinary memory is copied to a pinned buffer first."""

LINKS = {"3x16": 15.75, "4x8": 15.75, "4x16": 31.5, "5x16": 63.0}
"""Rates of PCI Express by generation and lanes, one direction, after encoding, 10^9 bytes/s."""

CONTEXT = 450 * MIB
"""What a CUDA or ROCm process takes before its first tensor: 300 to 500 MB on common cards."""


@dataclass(frozen=True)
class Card:
    """What a maker publishes: TFLOP/s in half precision, 10^9 bytes/s of memory, the link."""

    maker: str
    tflops: float
    gigabytes: float
    link: str | None
    """``None``: host and device share one memory."""


CARDS = {
    "RTX 3060": Card("nvidia", 25.5, 360, "4x16"),
    "RTX 3060 Ti": Card("nvidia", 32.4, 448, "4x16"),
    "RTX 3070": Card("nvidia", 40.6, 448, "4x16"),
    "RTX 3080": Card("nvidia", 59.5, 760, "4x16"),
    "RTX 3090": Card("nvidia", 71.0, 936, "4x16"),
    "RTX 4060": Card("nvidia", 30.2, 272, "4x8"),
    "RTX 4060 Ti": Card("nvidia", 44.1, 288, "4x8"),
    "RTX 4070": Card("nvidia", 58.3, 504, "4x16"),
    "RTX 4070 Ti": Card("nvidia", 80.2, 504, "4x16"),
    "RTX 4080": Card("nvidia", 97.5, 717, "4x16"),
    "RTX 4090": Card("nvidia", 165.2, 1008, "4x16"),
    "RTX 5090": Card("nvidia", 209.5, 1792, "5x16"),
    "A100": Card("nvidia", 312.0, 1555, "4x16"),
    "T4": Card("nvidia", 65.0, 320, "3x16"),
    "RX 7900 XTX": Card("amd", 122.8, 960, "4x16"),
    "Apple M1": Card("apple", 2.6, 68, None),
    "Apple M1 Pro": Card("apple", 5.2, 200, None),
    "Apple M1 Max": Card("apple", 10.4, 400, None),
    "Apple M1 Ultra": Card("apple", 20.8, 800, None),
    "Apple M2": Card("apple", 3.6, 100, None),
    "Apple M2 Pro": Card("apple", 6.8, 200, None),
    "Apple M2 Max": Card("apple", 13.6, 400, None),
    "Apple M2 Ultra": Card("apple", 27.2, 800, None),
}
"""The smaller of two figures where a name stands for two cards (A100 with 40 and 80 GB)."""

MODEST = Card("nvidia", 20.0, 250, "3x16")
"""Stands in for a card that is not listed."""

_PLAIN = re.compile(r"[^a-z0-9]+")


def published(name: str) -> DeviceProfile | None:
    """The profile of the card a driver calls ``name``; ``None`` for one that is not listed.

    The longest listed name that stands in ``name`` as whole words counts. A card of another
    size (``Laptop``, ``Mobile``, ``SUPER``, ``Max-Q``) is another card, and so is ``Ti`` or a
    chip's ``Pro``, ``Max``, ``Ultra`` where only the plain one is listed.
    """
    words = _words(name)
    found = [key for key in CARDS if f" {_words(key).strip()} " in words]
    if not found:
        return None
    key = max(found, key=len)
    rest = words.replace(_words(key), " ", 1).split()
    if _OTHER_CARDS & set(rest):
        return None
    return _profile(name, CARDS[key], f"published figures of the {key}, of which a part is counted")


def assumed(name: str) -> DeviceProfile:
    """A profile for any device: the published one, else that of a modest one of its kind."""
    like = CARDS["Apple M1"] if "apple" in _words(name).split() else MODEST
    return published(name) or _profile(
        name, like, "no published figures are listed for this device; a modest one is assumed"
    )


_OTHER_CARDS = {"laptop", "mobile", "super", "max", "q", "ti", "pro", "ultra", "d", "gre", "xt"}


def _words(name: str) -> str:
    return f" {_PLAIN.sub(' ', name.lower()).strip()} "


def _profile(name: str, card: Card, source: str) -> DeviceProfile:
    memory = card.gigabytes * GIGA * MEMORY
    link = None if card.link is None else LINKS[card.link] * GIGA
    return DeviceProfile(
        name=name,
        h2d_pinned=memory / 2 if link is None else link * PINNED,
        h2d_pageable=memory / 2 if link is None else link * PAGEABLE,
        flops=card.tflops * TERA * PRODUCTS[card.maker],
        bandwidth=memory,
        context_bytes=0 if link is None else CONTEXT,
        workspace_factor=1.0,
        measured=False,
        source=source,
    )
