"""Cases: whoever sits at the browser is asked before a node runs again."""

from __future__ import annotations

import prompts
from lowtide.memory import backend
from prompts import runner
from rescued import GPU, attempts, errors, fresh, prompt


def asked_with(said: object, **more) -> tuple[list[str], list[dict], object]:
    """A prompt with rescue on ask; ``said`` is done with every question."""
    import sys
    from types import SimpleNamespace

    sent: list[dict] = []

    def send_sync(event, data, sid=None):
        if event == "lowtide.rescue":
            assert backend.allocated(GPU) < 5 * prompts.MIB, (
                "a question must not hold what the node left"
            )
            sent.append(data)
            said(data["question"])

    keep = sys.modules.get("server")
    instance = SimpleNamespace(client_id=more.pop("client", "me"), send_sync=send_sync)
    sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    fresh()
    errors(1)
    one = runner()
    try:
        return prompt(one, rescue="ask", **more), sent, one
    finally:
        sys.modules.pop("server")
        if keep is not None:
            sys.modules["server"] = keep


def case_ask_runs_again_after_a_yes_only() -> None:
    from lowtide.memory.adapters.comfy import asking

    for yes in (True, False):
        ran, sent, one = asked_with(lambda name, yes=yes: asking.answer(name, yes))
        assert ran.count("h") == (2 if yes else 1) and one.success is yes
        assert len(sent) == 1 and "Node h is out of memory" in sent[0]["text"]
        assert len(attempts()) == (1 if yes else 0)
        assert not asking.answer(sent[0]["question"], True), "a question is answered once"


def case_ask_without_a_browser_or_an_answer_is_a_no() -> None:
    import comfy.model_management as mm
    from lowtide.memory.adapters.comfy import asking

    ran, sent, one = asked_with(lambda name: None, client=None)
    assert (ran, sent, one.success) == (["m", "h"], [], False)
    ask = asking.ask
    asking.ask = lambda node, does: ask(node, does, seconds=0.3)
    try:
        ran, sent, one = asked_with(lambda name: None)
        assert (ran, len(sent), one.success) == (["m", "h"], 1, False)
    finally:
        asking.ask = ask
    # A prompt that is cancelled waits no longer: a minute would be felt here.
    ran, sent, one = asked_with(lambda name: mm.interrupt_current_processing(True))
    mm.interrupt_current_processing(False)
    assert (ran, len(sent), one.success) == (["m", "h"], 1, False)


def case_the_answer_comes_in_by_a_route() -> None:
    import asyncio
    import json

    from lowtide.memory.adapters.comfy import asking
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
