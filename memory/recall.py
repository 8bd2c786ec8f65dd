"""A history's answers from one reading of each model's rows, for a decision that asks many times.

The same answers as :class:`~.history.History` gives, which opens its file for every question.
No torch here.
"""

from __future__ import annotations

from . import corrections
from .history import LEVEL_ROWS, History
from .history_rows import FITS, OUT_OF_MEMORY, Key, Row


class Recall:
    """What is known when it is first asked about a model; rows written later are not seen."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._rows: dict[tuple[str, str], list[Row]] = {}

    def correction(self, key: Key, stage: str, *, of: str = "bytes") -> float:
        """As ``History.correction``."""
        ratio = corrections.of_seconds if of == "seconds" else corrections.of_bytes
        return corrections.correction(*self._known(key, stage), ratio)

    def margin(self, key: Key, stage: str, before: float = 0.05) -> float:
        """As ``History.margin``."""
        return corrections.margin(*self._known(key, stage), before)

    def outcome(
        self, key: Key, level: str, *, free: int | None = None, stage: str | None = None
    ) -> str | None:
        """As ``History.outcome``."""
        found = [
            row
            for row in self._of_model(key)
            if row.level == level and row.outcome in (FITS, OUT_OF_MEMORY)
        ][:LEVEL_ROWS]
        if stage is not None:
            found = [row for row in found if row.stage == stage]
        return corrections.verdict(found, key.size, free)

    def _known(self, key: Key, stage: str) -> tuple[list[Row], list[Row]]:
        exact: list[Row] = []
        like: list[Row] = []
        for row in self._of_model(key):
            if row.stage == stage:
                same = (row.key.shapes, row.key.plan) == (key.shapes, key.plan)
                (exact if same else like).append(row)
        return exact[: corrections.RECENT], like[: corrections.RECENT]

    def _of_model(self, key: Key) -> list[Row]:
        name = (key.gpu, key.model)
        if name not in self._rows:
            self._rows[name] = self._history.of_model(*name)
        return self._rows[name]
