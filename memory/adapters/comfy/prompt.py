"""The prompt that is running: what its nodes have done so far, and what they ask Lowtide for."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from ...levels import MemoryOptimizationConfig
from ...rescue import TRIES, ladder
from . import acquainted, asked, asking, learned, staying, visits
from .graph import needed_patchers
from .residency import residency_of
from .spans import Recorder

logger = logging.getLogger("lowtide")


@dataclass
class Prompt:
    """One run of a graph; ``executor`` is ``None`` if Lowtide came in while it ran."""

    executor: Any
    registry: Any = None
    recorder: Recorder | None = None
    done: set[str] = field(default_factory=set)
    """Nodes whose outputs are known: cached when the prompt began, or finished since."""
    ran: set[str] = field(default_factory=set)
    config: MemoryOptimizationConfig = field(default_factory=MemoryOptimizationConfig)
    """The strongest cleanup policy its nodes asked for so far."""
    always: bool = False
    """Whether they, or a model of this prompt, have the policy ``always``."""
    rescue: str = "off"
    learns: bool = True
    """Whether its figures go to the history."""
    beside: bool = False
    """Whether models stayed on the device beside the node that began last."""
    turns_peak: int = 0
    """Bytes at the highest peak of a turn in that node, without those models."""
    strangers: set[str] = field(default_factory=set)
    """Nodes that run and may take memory of the device that no budget knows of."""
    work: dict[str, learned.Work] = field(default_factory=dict)
    """What its nodes worked on."""

    def follow(self, config: MemoryOptimizationConfig) -> None:
        """Clean up by this configuration from now on."""
        self.config = config
        self.always = self.always or (config.cleanup == "always" and config.on_exit)

    def asks(self, graph: Any) -> None:
        """Take in what the nodes of its graph ask for before they run."""
        self.rescue = asked.rescue(graph)
        self.learns = asked.learns(graph)
        self.follow(asked.cleanup(graph))

    def begins(self, node: str) -> None:
        """A node begins to run; what stays on the device under a budget leaves for a stranger."""
        self.ran.add(node)
        if self.executor is None or self.registry is None:
            return
        try:
            staying.orphans_leave()
            known = acquainted.known(self.registry.dynprompt, node, self._outputs)
        except Exception:
            logger.exception("Lowtide does not know what node %s does", node)
            known = False
        if not known:
            self.strangers.add(node)
            staying.all_leave()
        self.beside, self.turns_peak = bool(staying.resident()), 0

    def note_turn(self, peak: int, beside: int) -> None:
        """A model's turn has ended: bytes at its peak, and of other models that stayed beside."""
        self.beside = self.beside or beside > 0
        self.turns_peak = max(self.turns_peak, peak - beside)

    @property
    def own_peak(self) -> int | None:
        """Bytes at the peak of the node's own turns, where other models stayed beside them."""
        return self.turns_peak if self.beside and self.turns_peak else None

    def ends(self, node: str) -> None:
        """A node has ended, or was found cached."""
        self.done.add(node)
        self.strangers.discard(node)

    def _outputs(self, node: str) -> list[Any] | None:
        return visits.outputs_of(self.executor.caches, node)

    def needed(self, *, begun: bool = True) -> list[Any] | None:
        """Patchers that nodes need which have not ended, ``None`` where that is not known.

        Args:
            begun: whether nodes count that have begun.
        """
        if self.executor is None or self.registry is None:
            return None
        past = self.done if begun else self.done | self.ran

        def outputs(node: str) -> list[Any] | None:
            made = visits.outputs_of(self.executor.caches, node)
            return [] if made is None and node not in self.done and node in past else made

        return needed_patchers(self.registry.dynprompt, past, outputs)

    def end(self, status: str, message: dict[str, Any]) -> None:
        """It has ended; ``message`` is ComfyUI's about that, with the node it ended in, if any."""
        recorder, node = self.recorder, message.get("node_id")
        if node is not None:
            learned.take(self, node)
        self.registry = None
        if recorder is None:
            return
        if node is not None:
            recorder.finish(node, status)
        recorder.end(status)
        learned.log(self, message)

    @property
    def policy(self) -> str:
        """The cleanup policy of a model that has none of its own."""
        return "always" if self.always else "off"

    def leaves_soon(self, patcher: Any) -> bool:
        """Whether a model that is loaded now may leave within this prompt, and stay on the host."""
        if self.config.cleanup_host:
            return False
        residency = residency_of(patcher)
        if residency is None:
            return self.always
        return residency.leave or residency.stays or residency.cleanup == "always"

    def agreed(self, node: str) -> bool:
        """Whether a node that is out of memory may run again; asks, where that is the setting."""
        if self.rescue != "ask":
            return self.rescue == "on"
        does = "; ".join(rung.does for rung in ladder())
        return asking.ask(node, f"At most {TRIES} tries: {does}.")
