"""Cases: the device is measured once, between prompts, and a prompt that begins ends it."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as mm
import torch
from lowtide.memory import backend, learning, profile_probe, profiles
from lowtide.memory.adapters.comfy import executor, foretold, plan_choice, profiling
from lowtide.memory.device import snapshot
from lowtide.memory.history_rows import Key, Row
from lowtide.memory.later import planning
from lowtide.memory.levels import MemoryOptimizationConfig
from lowtide.memory.run_key import gpu_name
from lowtide.tests.accelerator import current
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed
from prompts import DEVICE, MIB, go, runner

GPU = backend.device_of(DEVICE)
SIM = current()
VERSION = str(torch.__version__)
OURS = {"s": ("LowtideMemoryLevelSelector", 0, {}), "out": ("Leave", 0)}


class Counted(profile_probe.DeviceProbe):
    """Counts measurements, and shows when one has buffers on the device."""

    made = 0
    there = threading.Event()
    seconds = 0.0
    fails = False

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        Counted.made += 1

    def copy_on(self, size: int) -> float:
        took = super().copy_on(size)
        if Counted.fails:
            raise RuntimeError("as planned")
        Counted.there.set()
        time.sleep(Counted.seconds)
        return took


@contextmanager
def begun(word: str = "on", quiet: float = 0.05) -> Iterator[Path]:
    """Nothing known, nothing on the device, and measuring allowed; the file it is kept in."""
    home = Path(os.environ["LOWTIDE_HOME"])
    before, probe, waits = dict(os.environ), profile_probe.DeviceProbe, profiling._QUIET
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LOWTIDE_HOME": folder, profiles.SWITCH: word}
        profiles.forget()
        executor.uninstall()
        backend.empty_cache(GPU)
        profile_probe.DeviceProbe, profiling._QUIET = Counted, quiet
        Counted.made, Counted.seconds, Counted.fails = 0, 0.0, False
        Counted.there.clear()
        executor.install()
        try:
            yield Path(folder) / profiles.NAME
        finally:
            executor.uninstall()
            assert planning.finish(30)
            profile_probe.DeviceProbe, profiling._QUIET = probe, waits
            os.environ.clear()
            os.environ.update(before)
            profiles.forget()
    assert Path(os.environ["LOWTIDE_HOME"]) == home


def known() -> bool:
    return profiles.known(snapshot(GPU).name, VERSION).measured


def held() -> tuple[int, int, int]:
    return SIM.allocated, SIM.reserved, SIM.counters()["pinned"]


def prompt(**more: tuple) -> None:
    go(runner(), **(more or OURS))


def case_it_is_measured_once_and_leaves_nothing() -> None:
    with begun() as file:
        kept = torch.zeros(3 * MIB, dtype=torch.uint8, device=DEVICE)
        cached = torch.zeros(40 * MIB, dtype=torch.uint8, device=DEVICE)
        del cached
        before, used = held(), SIM.peak_reserved
        SIM.reset_peaks()
        prompt()
        assert planning.finish(30)
        assert held()[::2] == before[::2] and held()[1] <= before[1], (before, held())
        assert used <= SIM.peak_reserved <= before[1] + 4 * profiling.MOST_BYTES
        assert known() and Counted.made == 1
        (kept_under,) = json.loads(file.read_text())
        assert kept_under == profiles.key_of(snapshot(GPU).name, VERSION)
        prompt()
        assert planning.finish(30) and Counted.made == 1
        executor.uninstall()  # as another process, that has the file
        profiles.forget()
        executor.install()
        SIM.reset_counters()
        prompt()
        assert planning.finish(30) and Counted.made == 1 and known()
        assert SIM.counters()["h2d"] == 0
        del kept


def case_a_prompt_that_begins_ends_it_and_meets_nothing_of_it() -> None:
    with begun() as file:
        Counted.seconds = 0.2
        prompt()
        assert Counted.there.wait(30)
        before = time.perf_counter()
        prompt(**OURS, n=("Node", 3), see=("Leave", 1, "n"))
        took = time.perf_counter() - before
        assert took < 2.0, took
        (span,) = (it for it in executor.timelines()[-1]["nodes"] if it["node"] == "n")
        assert span["peak_allocated"] == 3 * MIB, span
        assert not file.exists() and not known()
        Counted.seconds = 0.0
        assert planning.finish(30)  # tried again after this prompt
        assert Counted.made == 2 and known() and file.exists()
        assert held() == (0, 0, 0), held()


def case_a_prompt_does_not_wait_for_a_device_that_hangs() -> None:
    with begun():
        patience, profiling._PATIENCE = profiling._PATIENCE, 0.3
        try:
            Counted.seconds = 1.0
            prompt()
            assert Counted.there.wait(30)
            before = time.perf_counter()
            prompt()
            assert 0.25 < time.perf_counter() - before < 0.9
            Counted.seconds = 0.0
        finally:
            profiling._PATIENCE = patience


def case_it_is_tried_three_times_and_no_prompt_fails_for_it() -> None:
    with begun() as file:
        Counted.fails = True
        for _ in range(5):
            prompt()
            assert planning.finish(30)
        assert Counted.made == profiling.MOST_TRIES and not file.exists()
        assert held() == (0, 0, 0), held()


def case_where_a_prompt_waits_or_runs_nothing_is_measured() -> None:
    server = FakeServer()
    with begun(quiet=0.3), Installed(server):
        for name, value in (("queue", [1]), ("currently_running", {1: None})):
            setattr(server.prompt_queue, name, value)
            settling, profiling._SETTLING = profiling._SETTLING, 0.6
            try:
                prompt()
                assert planning.finish(30) and Counted.made == 0, name
            finally:
                profiling._SETTLING = settling
            setattr(server.prompt_queue, name, type(value)())
        # What ran leaves the queue, and one that comes in meanwhile ends it.
        Counted.seconds = 0.2
        server.prompt_queue.currently_running = {1: None}
        prompt()
        time.sleep(0.1)
        server.prompt_queue.currently_running = {}
        assert Counted.there.wait(30)
        server.prompt_queue.queue = [1]
        assert planning.finish(30) and Counted.made == 1 and not known()


def case_only_after_our_nodes_and_unless_it_is_switched_off() -> None:
    with begun():
        prompt(x=("Node", 1), see=("Leave", 1, "x"))
        assert planning.finish(30) and Counted.made == 0
    for word in ("off", "0", " No "):
        with begun(word):
            prompt()
            assert planning.finish(30) and Counted.made == 0, word


def case_a_device_that_is_full_or_the_hosts_is_left_alone() -> None:
    with begun():
        with SIM.limited(profiling.LEAST_FREE - MIB):
            prompt()
            assert planning.finish(30) and Counted.made == 0
        plain, mm.get_torch_device = mm.get_torch_device, lambda: torch.device("cpu")
        try:
            profiling.device._measure(lambda: None)
        finally:
            mm.get_torch_device = plain
        assert Counted.made == 0 and profiling.device._over
    with begun():
        unified = profiling.snapshot
        profiling.snapshot = lambda where: unified(where).__class__(
            **{**unified(where).to_dict(), "unified": True}
        )
        try:
            prompt()
            assert planning.finish(30) and Counted.made == 0
        finally:
            profiling.snapshot = unified


def case_what_other_figures_foretold_counts_no_more() -> None:
    with begun():
        gpu = gpu_name(snapshot(GPU), VERSION)
        key = Key(gpu, "model", "shape", "plan", 1)
        other = Key("another", "model", "shape", "plan", 1)
        rows = [Row(it, "denoising", "none", 1.0, predicted=9, measured=18) for it in (key, other)]
        learning.history().add(rows)
        learning.expect(key, "denoising", 9)
        foretold.remember(key, "denoising", learning.foretold(key, "denoising"))
        decided = plan_choice._Decision(MemoryOptimizationConfig(), object(), "none", None, 0)
        plan_choice._decisions["1"] = decided
        prompt()
        assert planning.finish(30) and known()
        history = learning.history()
        assert history.correction(key, "denoising") == 1.0
        assert history.correction(other, "denoising") > 1.2
        assert learning.expected(key, "denoising") == (None, None)
        assert foretold.of(key, "denoising") is None
        assert decided.run is None, "a graph that changes is decided on anew"
        assert [row.measured for row in history.of_model(gpu, "model")] == [18]
