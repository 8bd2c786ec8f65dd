"""Lowtide's nodes: widgets, one call into ``memory``, outputs. One family per file."""

from __future__ import annotations

from typing import Any

from ..memory import session
from . import cleanup, diffusers, fit_check, levels, monitor, optimize, settings

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

for _family in (levels, settings, fit_check, optimize, diffusers, monitor, cleanup):
    NODE_CLASS_MAPPINGS.update(_family.NODE_CLASS_MAPPINGS)
    NODE_DISPLAY_NAME_MAPPINGS.update(_family.NODE_DISPLAY_NAME_MAPPINGS)

session.open_to_the_browser()
