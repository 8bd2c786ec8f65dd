"""A tab that watches, for cases of the overlay: nothing loaded, nothing known, all it is sent."""

from __future__ import annotations

import prompts
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.overlay import events, ledger, nodes_measured, readings
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed
from prompts import DEVICE, MODELS, runner
from small import unload

GPU = backend.device_of(DEVICE)


class Tab(prompts.Server):
    client_id = "one"


class Watched:
    """A connected tab that has asked for the state, with nothing loaded and nothing known."""

    def __init__(self, *tabs: str) -> None:
        self.installed = Installed(FakeServer(*tabs))

    def __enter__(self) -> FakeServer:
        clean()
        found = self.installed.__enter__()
        events.begin()
        return found

    def __exit__(self, *exc: object) -> None:
        clean()
        self.installed.__exit__(*exc)


def clean() -> None:
    events.pulse.stop()
    events._state.update(asked=False, models=None)
    unload()
    MODELS.clear()
    executor.uninstall()
    ledger.forget()
    nodes_measured.forget()
    readings.forget_peaks()
    backend.empty_cache(GPU)
    assert backend.allocated(GPU) == 0


def running(server: FakeServer) -> object:
    """An executor whose prompts come from the tab ``one``, which these prompts do not say."""
    one = runner()
    one.server = Tab()
    server.client_id = "one"
    return one
