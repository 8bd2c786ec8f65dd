"""What the rows of a model say, whoever holds them; the rules are those of ``corrections.py``.

No torch here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from . import corrections
from .history_rows import Key, Row

LEVEL_ROWS = 200
"""Of a level, the latest that are asked whether it fits."""


class Answers(ABC):
    """``History`` reads rows for every question, ``Recall`` once a model."""

    def correction(self, key: Key, stage: str, *, of: str = "bytes") -> float:
        """What to multiply the prediction of a stage by; ``of`` is ``bytes`` or ``seconds``."""
        ratio = corrections.of_seconds if of == "seconds" else corrections.of_bytes
        return corrections.correction(*self._known(key, stage), ratio)

    def margin(self, key: Key, stage: str, before: float = 0.05) -> float:
        """What part of the corrected prediction to keep free; ``before`` where nothing is known."""
        return corrections.margin(*self._known(key, stage), before)

    def outcome(
        self, key: Key, level: str, *, free: int | None = None, stage: str | None = None
    ) -> str | None:
        """``fits``, ``out of memory`` or ``None`` (not known) for ``level`` at ``key.size``.

        Args:
            free: what the process could use of the device now, in bytes: free, or held by itself.
            stage: look at this stage only.
        """
        rows = self._of_level(key, level)
        if stage is not None:
            rows = [row for row in rows if row.stage == stage]
        return corrections.verdict(rows, key.size, free)

    @abstractmethod
    def _known(self, key: Key, stage: str) -> tuple[list[Row], list[Row]]:
        """(rows of this key, other rows of its model) of a stage, the latest first."""

    @abstractmethod
    def _of_level(self, key: Key, level: str) -> list[Row]:
        """The latest ``LEVEL_ROWS`` that fitted or ran out at a level, the latest first."""
