"""Cases: whoever sits at the browser is asked before a node runs again."""

from __future__ import annotations

import contextlib
import threading
import time

import prompts
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import asking
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed
from prompts import runner
from rescued import GPU, attempts, errors, fresh, prompt


def asked_with(said: object, **more) -> tuple[list[str], list[dict], object]:
    """A prompt with rescue on ask; ``said`` is done with every question.

    What was sent about it: the questions, after which came, in each case, that it is over.
    """
    server = FakeServer("me")
    server.client_id = more.pop("client", "me")
    sent: list[dict] = []

    def send_sync(event, data, sid=None):
        if event == "lowtide.rescue":
            assert backend.allocated(GPU) < 5 * prompts.MIB, (
                "a question must not hold what the node left"
            )
            assert sid == "me"
            sent.append(data)
            if data["open"]:
                said(data["question"])

    server.send_sync = send_sync
    fresh()
    errors(1)
    one = runner()
    with Installed(server):
        ran = prompt(one, rescue="ask", **more)
    if sent:
        last = sent.pop()
        assert last == {"question": sent[0]["question"], "open": False}
    return ran, sent, one


@contextlib.contextmanager
def waiting(**times: float):
    """Other times than a person would need."""
    keep = {name: getattr(asking, name) for name in times}
    ask = asking.ask
    vars(asking).update(times)
    if "SECONDS" in times:
        asking.ask = lambda node, does: ask(node, does, seconds=times["SECONDS"])
    try:
        yield
    finally:
        vars(asking).update(keep, ask=ask)


def case_ask_runs_again_after_a_yes_only() -> None:
    for yes in (True, False):
        ran, sent, one = asked_with(lambda name, yes=yes: asking.answer(name, yes))
        assert ran.count("h") == (2 if yes else 1) and one.success is yes
        assert len(sent) == 1 and "Node h is out of memory" in sent[0]["text"]
        assert len(attempts()) == (1 if yes else 0)
        assert not asking.answer(sent[0]["question"], True), "a question is answered once"


def case_ask_without_a_browser_or_an_answer_is_a_no() -> None:
    ran, sent, one = asked_with(lambda name: None, client=None)
    assert (ran, sent, one.success) == (["m", "h"], [], False)
    with waiting(SECONDS=0.3):
        ran, sent, one = asked_with(lambda name: None)
    assert (ran, len(sent), one.success) == (["m", "h"], 1, False)


def case_an_open_question_is_sent_again() -> None:
    times: list[str] = []

    def third(name: str) -> None:
        times.append(name)
        if len(times) == 3:
            asking.answer(name, True)

    with waiting(AGAIN=0.3):
        ran, sent, one = asked_with(third)
    assert ran.count("h") == 2 and one.success and len(set(times)) == 1
    left = [it.pop("seconds") for it in sent]
    assert sent == 3 * [sent[0]] and left == sorted(left, reverse=True)


def case_a_tab_that_was_closed_is_waited_for_no_longer() -> None:
    import sys

    def closes(name: str) -> None:
        sys.modules["server"].PromptServer.instance.sockets.clear()

    with waiting(GONE=0.5):
        started = time.monotonic()
        ran, sent, one = asked_with(closes)
    assert (ran, len(sent), one.success) == (["m", "h"], 1, False)
    assert 0.5 <= time.monotonic() - started < 20

    def reloads(name: str) -> None:
        server = sys.modules["server"].PromptServer.instance
        if server.sockets:
            server.sockets.clear()
            threading.Timer(0.6, server.sockets.update, ({"me": object()},)).start()
            threading.Timer(1.2, asking.answer, (name, True)).start()

    with waiting(GONE=1.0):
        ran, sent, one = asked_with(reloads)
    assert ran.count("h") == 2 and one.success


def case_a_cancelled_prompt_waits_no_longer() -> None:
    import comfy.model_management as mm

    # A minute would be felt here.
    ran, sent, one = asked_with(lambda name: mm.interrupt_current_processing(True))
    mm.interrupt_current_processing(False)
    assert (ran, len(sent), one.success) == (["m", "h"], 1, False)


def case_the_answer_comes_in_by_a_route() -> None:
    import asyncio
    import json

    from lowtide.memory.adapters.comfy.overlay import actions

    question = asking._open["q"] = asking._Question()
    for said, status in (
        ({"question": "q", "yes": True}, 200),
        ({"question": "other", "yes": True}, 404),
        ({"yes": True}, 400),
        ({"question": "q", "yes": 1}, 400),
    ):
        body = json.dumps(said).encode()
        assert asyncio.run(actions.act("rescue", body))[0] == status, said
    assert question.yes and question.settled.is_set()
    del asking._open["q"]
