"""What Force Cleanup says of a node pack that keeps tensors."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

from executed import SIM, done, fresh, runner
from workflows import text_to_image

import nodes

PACK = Path(__file__).with_name("leaking_pack.py")
MIB = 1 << 20


def of(kind: str, mib: int) -> dict[str, Any]:
    """The receipt after a node of that kind, and what the device held then."""
    if not any(name.startswith("Leak") for name in nodes.NODE_CLASS_MAPPINGS):
        assert asyncio.run(nodes.load_custom_node(str(PACK)))
    fresh()
    graph = text_to_image(cleanup="off", rescue="off", steps=1)
    graph["20"] = {"class_type": f"Leak{kind}", "inputs": {"image": ["8", 0], "mib": mib}}
    graph["21"] = {
        "class_type": "LowtideForceCleanup",
        "inputs": {"anything": ["20", 0], "target": "vram"},
    }
    graph["9"]["inputs"]["images"] = ["21", 0]
    one = runner()
    gc.disable()
    try:
        done(one, graph)
    finally:
        gc.enable()
    held = SIM.allocated
    text = one.history_result["outputs"]["21"]["text"][0]
    sys.modules[nodes.NODE_CLASS_MAPPINGS["LeakDropsCycle"].__module__].forget()
    del one
    gc.collect()
    fresh()
    return {"text": text, "held": held, "file": str(PACK)}
