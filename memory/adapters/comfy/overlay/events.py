"""What the overlay is told while ComfyUI works: samples, models, nodes, runs and receipts.

Nothing is sent, and no thread is there, before a tab has asked for the state once, nor while none
is connected. Runs are followed from that first question on, or as soon as a graph has a node of
Lowtide's.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from .... import override
from ....timeline import RUNNING, Event, NodeSpan, RunTimeline
from .. import executor, prompt_server
from . import fit, hub, inventory, ledger, nodes_measured, readings, tidy
from .news import News
from .pulse import Pulse

logger = logging.getLogger("lowtide")

SAMPLE, MODELS, NODE, RUN = "lowtide.sample", "lowtide.models", "lowtide.node", "lowtide.run"
NEXT = "lowtide.next"

_state: dict[str, Any] = {"asked": False, "models": None}
news = News()


def begin() -> None:
    """A tab asked for the state: follow ComfyUI's prompts from now on, and send samples."""
    if not _state["asked"]:
        _state["asked"] = True
        executor.subscribe(heard)
        for run in executor.timelines():
            readings.note_peak(run["device"], run["peak_allocated"])
        executor.install_quietly()
    news.forget()
    pulse.wake()


def connected() -> None:
    """Somebody connects to ComfyUI's server: send samples again, if they were ever asked for."""
    if _state["asked"]:
        news.forget()
        pulse.wake()


def heard(timeline: RunTimeline, event: Event | None) -> None:
    """A run began or ended, or something happened in it; told by the thread that runs it."""
    if event is None and timeline.status == RUNNING:
        _began(timeline)
    elif event is None:
        _ended(timeline)
    elif isinstance(event, NodeSpan):
        nodes_measured.note(timeline, event)
        if prompt_server.watched():
            span = span_of(asdict(event))
            hub.send(NODE, {"prompt_id": tidy.line(timeline.run), "span": span}, to_tab=True)


def beat() -> None:
    """One sample if it is news, and the models if they moved."""
    send_models(always=False)
    found = sample()
    if news.is_in(found) and not prompt_server.congested() and hub.send(SAMPLE, found):
        news.sent(found)


def sample() -> dict[str, Any]:
    """What is running, and what devices and host hold."""
    return {
        "running": prompt_server.running(),
        "devices": readings.devices(),
        "host": readings.host(),
    }


def send_models(*, always: bool) -> None:
    """Send the models; unless ``always``, only if they moved since that was done last."""
    rows = inventory.rows()
    key = [(row.id, row.on_device, row.fp8, row.on_host, row.pinned) for row in rows]
    if always or key != _state["models"]:
        # Whoever connects later gets them with the state.
        _state["models"] = key
        hub.send(MODELS, {"models": [row.to_dict() for row in rows]})


def run_of(plain: dict[str, Any]) -> dict[str, Any]:
    """A run as plain values, its names made fit to be sent."""
    return {
        **plain,
        "run": tidy.line(plain["run"]),
        "cached": [tidy.line(node) for node in plain["cached"]],
        "nodes": [span_of(span) for span in plain["nodes"]],
        "releases": [
            {**it, "owner": tidy.name(it["owner"]), "after": _line_or_none(it["after"])}
            for it in plain["releases"]
        ],
        "attempts": [{**it, "node": tidy.line(it["node"])} for it in plain["attempts"]],
    }


def span_of(plain: dict[str, Any]) -> dict[str, Any]:
    """A node's span, the same way."""
    names = {name: tidy.line(plain[name]) for name in ("node", "class_type")}
    return {**plain, **names, "parent": _line_or_none(plain["parent"])}


def _line_or_none(value: str | None) -> str | None:
    return None if value is None else tidy.line(value)


def _began(timeline: RunTimeline) -> None:
    from comfy_execution.progress import get_progress_state

    graph = get_progress_state().dynprompt.original_prompt
    nodes_measured.begin(timeline.run, graph, fit.setting_of(graph, override.in_force()))
    if _state["asked"] and prompt_server.watched():
        pulse.wake()


def _ended(timeline: RunTimeline) -> None:
    readings.note_peak(timeline.device, timeline.peak_allocated)
    ledger.add_run(timeline)
    if prompt_server.watched():
        hub.send(RUN, {"run": run_of(timeline.to_dict())})
        send_models(always=True)


pulse = Pulse(prompt_server.watched, prompt_server.running, beat)
