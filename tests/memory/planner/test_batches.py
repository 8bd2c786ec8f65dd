"""The largest batch that fits: found, with few questions; and how a batch is divided."""

from __future__ import annotations

import pytest
from lowtide.memory.planner.batches import MOST, largest_batch, said, split


def asked(need, budget, most=64):
    questions: list[int] = []

    def counted(batch: int) -> int:
        questions.append(batch)
        return need(batch)

    return largest_batch(counted, budget, most), questions


@pytest.mark.parametrize("budget", [0, 99, 100, 149, 150, 151, 1000, 1234, 3249, 3250, 10**6])
def test_along_a_line_the_answer_is_exact_after_few_questions(budget):
    found, questions = asked(lambda batch: 50 + 50 * batch, budget)
    assert found == min(64, max(0, (budget - 50) // 50))
    assert len(questions) == len(set(questions)) <= 5


@pytest.mark.parametrize("budget", range(90, 700, 37))
def test_where_the_need_bends_the_answer_is_exact_too(budget):
    def need(batch: int) -> int:
        return max(100, 20 * batch) + (batch // 7) * 13

    found, questions = asked(need, budget, 40)
    assert found == max([b for b in range(1, 41) if need(b) <= budget], default=0)
    assert len(questions) <= 12


def test_no_more_is_found_than_was_asked_for():
    assert asked(lambda batch: batch, 10**9, 3)[0] == 3
    assert asked(lambda batch: batch, 10**9, 1) == (1, [1])


def test_the_most_that_is_asked_for_is_called_so():
    assert said(asked(lambda batch: batch, 10**9)[0]) == f"{MOST} or more"
    assert said(0) == "0" and said(MOST - 1) == str(MOST - 1)


@pytest.mark.parametrize("batch", range(1, 20))
@pytest.mark.parametrize("at_once", range(1, 9))
def test_parts_are_few_and_alike(batch, at_once):
    parts = split(batch, at_once)
    assert sum(parts) == batch
    assert max(parts) <= at_once
    assert len(parts) == -(-batch // at_once)
    assert max(parts) - min(parts) <= 1
