"""A history's answers from one reading of each model's rows, for a decision that asks many times.

The same answers as :class:`~.history.History` gives, which opens its file for every question.
No torch here.
"""

from __future__ import annotations

from . import corrections
from .history import History
from .history_answers import LEVEL_ROWS, Answers
from .history_rows import FITS, OUT_OF_MEMORY, Key, Row


class Recall(Answers):
    """What is known when it is first asked about a model; rows written later are not seen."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._rows: dict[tuple[str, str], list[Row]] = {}

    def _of_level(self, key: Key, level: str) -> list[Row]:
        return [
            row
            for row in self._of_model(key)
            if row.level == level and row.outcome in (FITS, OUT_OF_MEMORY)
        ][:LEVEL_ROWS]

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
