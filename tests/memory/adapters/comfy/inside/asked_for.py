"""Cases: what the person at the browser asks for, done at a moment that harms no prompt."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future

import execution
import torch
from lowtide.memory import backend, override, session
from lowtide.memory.adapters.comfy import deferred, executor
from lowtide.memory.adapters.comfy.overlay import actions, freeing, inventory, ledger
from prompts import LOG, MIB, MODELS, Node, go
from small import load, patcher
from watched import GPU, Watched, running

import nodes

ASKED: dict[str, object] = {}


class Asks(Node):
    """In the middle of a run somebody asks for something, in another thread."""

    def work(self, mb, a, b):
        thread = threading.Thread(target=ASKED["ask"])
        thread.start()
        thread.join()
        ASKED["held at once"] = backend.allocated(GPU)
        return (a,)


class Looks(Node):
    """What is on the device when this node begins."""

    OUTPUT_NODE = True

    def work(self, mb, a, b):
        ASKED[f"held at {mb}"] = backend.allocated(GPU)
        return {"ui": {"n": [mb]}, "result": (a,)}


class Chooses(Node):
    """What the selector would hand out at this moment."""

    OUTPUT_NODE = True

    def work(self, mb, a, b):
        ASKED.setdefault("chosen", []).append(session.choose("none", 0.0, "off")[0].level.value)
        return {"ui": {"n": [mb]}, "result": (mb,)}

    @classmethod
    def IS_CHANGED(cls, **_inputs: object) -> str:
        return session.detection_fingerprint("none")


for kind in (Asks, Looks, Chooses):
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind


def post(name: str, **body: object) -> tuple[int, dict]:
    return asyncio.run(actions.act(name, json.dumps(body).encode()))


class Worker:
    """ComfyUI's queue, and a thread that serves it as ``main.py`` does."""

    def __init__(self, server) -> None:
        server.queue_updated = lambda: None
        self.queue = server.prompt_queue = execution.PromptQueue(server)
        self.over = False
        self.ran_in: list[str] = []
        self.thread = threading.Thread(target=self.run, name="worker")

    def run(self) -> None:
        while not self.over:
            item = self.queue.get(timeout=1000.0)
            if item is not None:
                item[0][2]()
                self.queue.task_done(item[1], {}, None)
            self.queue.get_flags()

    def __enter__(self) -> Worker:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over = True
        self.queue.set_flag("over", True)
        self.thread.join(10)
        assert not self.thread.is_alive()


def case_between_two_nodes_a_free_takes_effect() -> None:
    with Watched("one") as server:
        MODELS[1] = patcher()
        futures: list[Future] = []
        ASKED["ask"] = lambda: futures.append(deferred.submit(lambda: freeing.free("vram", [])))
        ran = go(
            running(server),
            m=("Loader", 1),
            x=("Use", 1, "m"),
            ask=("Asks", 0, "x"),
            look=("Looks", 1, "ask"),
            y=("Use", 1, "m", "look"),
            out=("Looks", 2, "y"),
        )
        assert ran == ["m", "x", "ask", "look", "y", "out"]
        assert ASKED["held at once"] > 0 and ASKED["held at 1"] == 0
        assert ASKED["held at 2"] > 0, "ComfyUI loads again what a later node needs"
        receipt = futures[0].result(0)
        assert receipt["by"] == "user" and receipt["freed"] > 0
        assert ledger.entries()[-1] == receipt


def case_one_model_leaves_and_the_other_stays() -> None:
    with Watched("one") as server:
        MODELS[1], MODELS[2] = patcher(), patcher()
        load(MODELS[2])
        load(MODELS[1])
        first, second = inventory.rows()
        ASKED["ask"] = lambda: deferred.submit(lambda: freeing.unload(first.id))
        go(running(server), ask=("Asks", 0), out=("Looks", 1, "ask"))
        assert ASKED["held at 1"] == second.on_device == backend.allocated(GPU)
        assert [row.id for row in inventory.rows()] == [second.id]


def case_a_model_in_the_middle_of_a_sampling_is_waited_for() -> None:
    with Watched("one") as server:
        MODELS[1] = patcher()
        load(MODELS[1])
        MODELS[1].model.current_patcher = MODELS[1]
        futures: list[Future] = []
        ASKED["ask"] = lambda: futures.append(deferred.submit(lambda: freeing.free("vram", [])))
        go(running(server), ask=("Asks", 0), out=("Looks", 1, "ask"))
        assert ASKED["held at 1"] > 0 and not futures[0].done()
        MODELS[1].model.current_patcher = None
        server.prompt_queue.get_flags()
        assert futures[0].done() and backend.allocated(GPU) == 0


def case_after_a_prompt_that_failed_or_was_stopped_it_is_done_all_the_same() -> None:
    for end in ("Fails", "Stops"):
        with Watched("one") as server:
            MODELS[1] = patcher()
            load(MODELS[1])
            futures: list[Future] = []
            ASKED["ask"] = lambda futures=futures: futures.append(
                deferred.submit(lambda: freeing.free("vram", []))
            )
            keep, deferred.between_nodes = deferred.between_nodes, lambda: None
            try:
                go(running(server), ask=("Asks", 0), out=(end, 1, "ask"))
            finally:
                deferred.between_nodes = keep
            assert not futures[0].done()
            server.prompt_queue.get_flags()
            assert not futures[0].result(0)["errors"]
            assert backend.allocated(GPU) == 0


def case_while_nothing_runs_the_answer_is_the_receipt() -> None:
    with Watched("one") as server, Worker(server) as worker:
        MODELS[1] = patcher()
        load(MODELS[1])
        (row,) = inventory.rows()
        status, answer = post("unload", id=row.id)
        assert status == 200 and answer["receipt"]["by_owner"]["Model"] == row.on_device
        assert backend.allocated(GPU) == 0
        status, answer = post("unload", id=row.id)
        assert status == 404 and "fetch the state again" in answer["error"]
        load(MODELS[1])
        # In a list: until Python 3.13 a look for holders keeps the locals of running functions.
        held = [torch.zeros(3 * MIB, dtype=torch.uint8, device=GPU)]
        status, answer = post("free", target="vram", keep=["model"])
        assert status == 200 and backend.allocated(GPU) == row.on_device + held[0].nbytes
        status, answer = post("free", target="both")
        assert status == 200 and backend.allocated(GPU) == held[0].nbytes
        assert any("3.0 MB" in line for line in answer["receipt"]["text"].splitlines())
        held.clear()
        assert "get_flags" not in vars(worker.queue)


def case_while_a_prompt_runs_the_answer_is_that_it_will_be_done() -> None:
    with Watched("one") as server, Worker(server) as worker:
        MODELS[1] = patcher()
        load(MODELS[1])
        (row,) = inventory.rows()
        begun, go_on = threading.Event(), threading.Event()

        def prompt() -> None:
            begun.set()
            go_on.wait(20)

        worker.queue.put((0, "prompt", prompt, {}, []))
        assert begun.wait(10)
        for name, body in (("unload", {"id": row.id}), ("free", {"target": "vram"})):
            assert post(name, **body) == (200, {"queued": True})
        # A second one for a model that will be gone by then fails quietly.
        assert post("unload", id=row.id) == (200, {"queued": True})
        assert backend.allocated(GPU) == row.on_device
        go_on.set()
        last = deferred.submit(lambda: None)
        last.result(20)
        assert backend.allocated(GPU) == 0
        assert [it["by"] for it in ledger.entries()] == ["user", "user"]


def case_a_model_that_computes_on_the_host_has_nowhere_to_go() -> None:
    from comfy.model_patcher import ModelPatcher

    with Watched("one"):
        cpu = torch.device("cpu")
        MODELS[1] = ModelPatcher(patcher().model, cpu, cpu)
        load(MODELS[1])
        (row,) = inventory.rows()
        assert (row.can_unload, row.streamed) == (False, 0)
        status, answer = post("unload", id=row.id)
        assert status == 409 and "nowhere to go" in answer["error"]


def case_a_level_for_the_next_runs_is_not_for_this_one() -> None:
    with Watched("one") as server:
        one = running(server)
        ASKED["chosen"] = []
        ASKED["ask"] = lambda: post("next", level="ultra", budget_gb=None)
        try:
            graph = {"ask": ("Asks", 0), "c": ("Chooses", 0, "ask")}
            assert go(one, **graph) == ["ask", "c"] and ASKED["chosen"] == ["none"]
            ASKED["ask"] = lambda: None
            assert go(one, **graph) == ["c"] and ASKED["chosen"][1:] == ["ultra"]
            for _ in range(2):
                assert go(one, **graph) == [], "nothing changed, nothing runs"
            assert post("next", level=None, budget_gb=None)[0] == 200
            assert go(one, **graph) == ["c"] and ASKED["chosen"][2:] == ["none"]
            assert go(one, **graph) == []
        finally:
            override.set_next(None, None)
            override.begin_run()
    assert LOG == []


def case_a_budget_larger_than_the_device_is_refused_at_once() -> None:
    with Watched("one"):
        status, answer = post("next", level=None, budget_gb=1000.0)
        assert status == 400 and "give at most 4.00 GB" in answer["error"]
        status, answer = post("next", level=None, budget_gb=1e-12)
        assert status == 400 and "less than one byte" in answer["error"]
        assert not override.next_runs()


def case_the_routes_are_served_and_a_connection_is_noticed() -> None:
    from aiohttp import test_utils, web
    from lowtide.memory.adapters.comfy.overlay import events, routes

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        return answer

    async def talk(server) -> list[object]:
        server.app, server.routes = web.Application(), web.RouteTableDef()
        assert routes.open_routes()
        server.app.add_routes([*server.routes, web.get("/ws", socket)])
        async with test_utils.TestClient(test_utils.TestServer(server.app)) as client:
            seen: list[object] = []
            keep, events.connected = events.connected, lambda: seen.append("connected")
            try:
                found = await client.get("/lowtide/state")
                seen.append(found.headers["Cache-Control"])
                (await found.json())["devices"]
                body = b'{"prompt": {"1": "' + b"x" * (5 << 20) + b'"}}'

                async def in_parts():
                    for at in range(0, len(body), 1 << 16):
                        yield body[at : at + (1 << 16)]

                headers = {"Content-Type": "application/json"}
                sent = await client.post("/lowtide/fit", data=in_parts(), headers=headers)
                seen.append(sent.status)
                await (await client.ws_connect("/ws")).close()
            finally:
                events.connected = keep
            return seen

    with Watched("one") as server:
        assert asyncio.run(talk(server)) == ["no-store", 413, "connected"]


def case_a_cached_force_cleanup_names_its_node() -> None:
    session.repeat_cleanup({"target": "vram", "unique_id": "7"})
    assert ledger.entries()[-1]["by"] == "node 7"
    session.force_cleanup("ram", "8")
    assert ledger.entries()[-1]["by"] == "node 8"
    ledger.forget()
    executor.uninstall()
