"""The host's memory, and what a container leaves of it."""

import types

import psutil
import pytest
from lowtide.memory import host
from lowtide.memory.units import GIB, MIB


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A host of 32 GB with 20 available, outside any container; returns the cgroup root."""
    memory = types.SimpleNamespace(total=32 * GIB, available=20 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(host, "CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(host, "CGROUP_OF_SELF", tmp_path / "self")
    return tmp_path / "cgroup"


def put(folder, limit, current, inactive_file=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")


def test_without_a_container_the_machine_counts(machine):
    reading = host.host_snapshot()
    assert (reading.total, reading.available) == (32 * GIB, 20 * GIB)
    assert reading.process_rss > 10 * MIB


def test_a_container_limits_total_and_available(machine, tmp_path):
    (tmp_path / "self").write_text("0::/app/run\n")
    put(machine / "app" / "run", 8 * GIB, 5 * GIB, inactive_file=GIB)
    reading = host.host_snapshot()
    assert reading.total == 8 * GIB
    assert reading.available == 4 * GIB  # file cache is given back on demand


def test_the_tightest_container_counts(machine, tmp_path):
    (tmp_path / "self").write_text("0::/app/run\n")
    put(machine / "app" / "run", "max", GIB)
    put(machine / "app", 6 * GIB, 2 * GIB)
    put(machine, 16 * GIB, 2 * GIB)
    reading = host.host_snapshot()
    assert (reading.total, reading.available) == (6 * GIB, 4 * GIB)


def test_a_full_container_has_nothing_available(machine, tmp_path):
    (tmp_path / "self").write_text("0::/\n")
    put(machine, 2 * GIB, 3 * GIB)
    assert host.host_snapshot().available == 0


def test_a_limit_above_the_machine_changes_nothing(machine, tmp_path):
    (tmp_path / "self").write_text("0::/\n")
    put(machine, 64 * GIB, GIB)
    reading = host.host_snapshot()
    assert (reading.total, reading.available) == (32 * GIB, 20 * GIB)


def test_a_system_that_hides_its_swap_reports_none(machine, monkeypatch):
    def hidden():
        raise RuntimeError("performance counters are disabled")

    monkeypatch.setattr(psutil, "swap_memory", hidden)
    reading = host.host_snapshot()
    assert reading.to_dict()["swap_total"] is None
    assert reading.swap_used is None


def test_swap_is_read(machine, monkeypatch):
    swap = types.SimpleNamespace(total=4 * GIB, used=GIB)
    monkeypatch.setattr(psutil, "swap_memory", lambda: swap)
    reading = host.host_snapshot()
    assert (reading.swap_total, reading.swap_used) == (4 * GIB, GIB)
