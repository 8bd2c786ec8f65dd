"""Times the overlay's samples in one ComfyUI process; by its own interpreter.

    python sampling.py COMFYUI CPU-OR-DEVICE CHECKPOINT SAMPLES SIZE STEPS

A tab is connected that only turns every message into JSON, as the server would. Prints JSON on the
last line; CPU seconds: of one sample with nothing loaded (``empty``) and with a prompt's models
(``loaded``), of one reading of a run's own series (``series``), of the state (``state``); bytes of
a sample's message; and of whole prompts with the thread beside them its share of a core
(``running``).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time

import prompt_rig as rig
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.overlay import events, state
from lowtide.memory.highwater import Sampler
from lowtide.memory.series import Series
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed

SAMPLES = int(rig.PAIRS)


class Encoding(FakeServer):
    """Keeps the size of each message instead of the message."""

    def send_sync(self, event: str, data: object, sid: str | None = None) -> None:
        self.sent.append((event, len(json.dumps({"type": event, "data": data})), sid))


def cost(work: object) -> float:
    """CPU seconds of one call, the median of many."""
    found = []
    for _ in range(SAMPLES):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return statistics.median(found)


def told() -> None:
    """A beat whose sample is sent whether or not it is news."""
    events.news.forget()
    events.beat()


def running(server: Encoding) -> float:
    """The thread's share of a core while prompts run, one after the other."""
    runner = rig.executor()
    rig.run(runner, rig.graph(0, "off"), "first")
    server.prompt_queue.currently_running[0] = object()
    events.pulse.wake()
    before, started = events.pulse.seconds, time.perf_counter()
    seed = 0
    while time.perf_counter() - started < 4:
        seed += 1
        rig.run(runner, rig.graph(seed, "off"), f"run-{seed}")
    share = (events.pulse.seconds - before) / (time.perf_counter() - started)
    server.prompt_queue.currently_running.clear()
    return share


with tempfile.TemporaryDirectory() as folder, Installed(Encoding("tab")) as server:
    import folder_paths

    folder_paths.set_output_directory(folder)
    events.begin()
    events.pulse.stop()
    result: dict[str, float] = {"empty": cost(told)}
    result["running"] = running(server)
    events.pulse.stop()
    result["loaded"] = cost(told)
    result["state"] = cost(state.read)
    sampler = Sampler(backend.device_of(rig.mm.get_torch_device()), series=Series())
    sampler.stop()
    result["series"] = cost(lambda: sampler._record(sampler._sample()))
    sizes = [size for event, size, _ in server.sent if event == events.SAMPLE]
    result["bytes"] = statistics.median(sizes)
    result["runs"] = len(executor.timelines())
print("\n" + json.dumps(result))
