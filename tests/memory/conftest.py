"""Fixtures of the tests of pipelines."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.adapters import pipeline_choice
from lowtide.memory.foresight import Unpredicted


@pytest.fixture
def estimates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of a pipeline is planned, predicted or prepared for: estimates settle budgets."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Unpredicted("as planned")

    monkeypatch.setattr(pipeline_choice, "PipelineForesight", refuse)
    monkeypatch.setattr(pipeline_choice, "plan_batch", lambda *_, **__: (None, 1))
