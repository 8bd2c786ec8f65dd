"""Sampled high-water marks of a device and of the process."""

import threading
import time

import torch
from lowtide.memory import backend, highwater
from lowtide.memory.highwater import Sampler
from lowtide.memory.series import Series
from lowtide.memory.units import MIB


def test_a_mark_knows_the_highest_use_since_it_was_opened(accelerator, monkeypatch):
    monkeypatch.setattr(highwater, "SAMPLE_SECONDS", 0.001)
    sampler = Sampler(accelerator.device)
    try:
        early = sampler.open()
        start = early.device
        held = torch.zeros(40 * MIB, dtype=torch.uint8, device=accelerator.device)
        time.sleep(0.1)
        del held
        backend.empty_cache(accelerator.device)
        late = sampler.open()
        assert sampler.close(early).device >= start + 40 * MIB
        assert sampler.close(late).device < start + 40 * MIB
        assert early.host >= late.host > 0
    finally:
        sampler.stop()


def test_a_closed_mark_stays_as_it_was(accelerator):
    sampler = Sampler(accelerator.device)
    try:
        mark = sampler.close(sampler.open())
        before = mark.device
        held = torch.zeros(40 * MIB, dtype=torch.uint8, device=accelerator.device)
        sampler.close(sampler.open())
        assert mark.device == before
        del held
    finally:
        sampler.stop()


def test_the_thread_ends(accelerator):
    sampler = Sampler(accelerator.device)
    assert any(it.name == "lowtide-highwater" for it in threading.enumerate())
    sampler.stop()
    assert not any(it.name == "lowtide-highwater" for it in threading.enumerate())


def test_on_the_cpu_only_the_process_is_sampled():
    sampler = Sampler(torch.device("cpu", 0))
    try:
        mark = sampler.close(sampler.open())
        assert mark.device is None and mark.host > 0
    finally:
        sampler.stop()


def test_a_device_nobody_used_is_not_woken(accelerator, monkeypatch):
    monkeypatch.setattr(backend, "is_initialized", lambda device: False)
    monkeypatch.setattr(backend, "mem_get_info", lambda device: 1 / 0)
    sampler = Sampler(accelerator.device)
    try:
        assert sampler.open().device is None
    finally:
        sampler.stop()


def test_pages_outside_of_torch_are_sampled_where_somebody_counts_them(accelerator):
    held = [3]
    sampler = Sampler(accelerator.device, lambda: held[0])
    try:
        mark = sampler.open()
        held[0] = 9
        sampler.close(sampler.open())
        held[0] = 1
        assert sampler.close(mark).pages == 9
    finally:
        sampler.stop()
    plain = Sampler(accelerator.device)
    assert plain.close(plain.open()).pages is None
    plain.stop()


def test_a_series_shows_what_was_held_meanwhile(accelerator, monkeypatch):
    monkeypatch.setattr(highwater, "SAMPLE_SECONDS", 0.001)
    series, start = Series(), backend.held(accelerator.device)
    assert start == (backend.allocated(accelerator.device), backend.reserved(accelerator.device))
    sampler = Sampler(accelerator.device, series=series)
    held = torch.zeros(40 * MIB, dtype=torch.uint8, device=accelerator.device)
    time.sleep(0.1)
    del held
    sampler.stop()
    rows = series.rows()
    assert max(row[1] for row in rows) == start[0] + 40 * MIB
    assert all(row[2] >= row[1] for row in rows)
    assert max(row[3] for row in rows) >= 40 * MIB
    assert rows[-1][1] == start[0], "the end is sampled, too"
    count = len(rows)
    sampler.stop()
    assert len(series.rows()) == count


def test_the_cpu_has_no_series():
    series = Series()
    Sampler(torch.device("cpu", 0), series=series).stop()
    assert series.rows() == []
