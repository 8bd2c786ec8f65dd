"""Which samples say anything new."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.memory.adapters.comfy.overlay.news import HOST_STEP, QUIET_SECONDS, News


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def sample(running: bool = False, allocated: int = 5, **host: int | None) -> dict[str, Any]:
    figures = {"total": 1 << 35, "available": 1 << 34, "rss": 1 << 30} | host
    return {"running": running, "devices": [{"id": "x", "allocated": allocated}], "host": figures}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def news(clock: Clock) -> News:
    made = News(clock)
    assert made.is_in(sample())
    made.sent(sample())
    return made


def test_the_same_again_is_no_news(news: News):
    assert not news.is_in(sample())


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("name", ["available", "rss"])
def test_host_memory_is_news_from_a_step_on(news: News, name: str, by: int):
    was = sample()["host"][name]
    assert not news.is_in(sample(**{name: was + by * (HOST_STEP - 1)}))
    assert news.is_in(sample(**{name: was + by * HOST_STEP}))
    assert news.is_in(sample(**{name: None}))


def test_small_steps_add_up(news: News):
    was = sample()["host"]["available"]
    found = [news.is_in(sample(available=was - step * HOST_STEP // 4)) for step in range(6)]
    assert found == [False] * 4 + [True] * 2


def test_any_figure_of_a_device_is_news(news: News):
    assert news.is_in(sample(allocated=6))


def test_a_prompt_that_runs_is_and_its_end(news: News):
    assert news.is_in(sample(running=True))
    news.sent(sample(running=True))
    assert news.is_in(sample(running=True))
    assert news.is_in(sample())


def test_a_sample_is_sent_now_and_then(news: News, clock: Clock):
    clock.now += QUIET_SECONDS - 1
    assert not news.is_in(sample())
    clock.now += 1
    assert news.is_in(sample())


def test_what_was_not_sent_stays_news(news: News):
    assert news.is_in(sample(allocated=6))
    assert news.is_in(sample(allocated=6))


def test_one_who_comes_late_gets_the_next(news: News):
    news.forget()
    assert news.is_in(sample())
