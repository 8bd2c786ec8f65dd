"""Messages to the browser, and the receipts among them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from lowtide.memory.adapters.comfy.overlay import hub, ledger
from lowtide.memory.receipt import Reading, Receipt
from lowtide.memory.timeline import Release, RunTimeline
from lowtide.memory.units import MIB
from lowtide.tests.memory.adapters.comfy.fake_server import FakeServer, Installed


@pytest.fixture
def tabs() -> Iterator[FakeServer]:
    found = FakeServer("one", "two")
    with Installed(found):
        yield found
    ledger.forget()


def receipt(**facts: object) -> Receipt:
    reading = Reading(4 * MIB, 4 * MIB, None, 0)
    known = {"device": "npu:0", "before": reading, "after": Reading(0, 0, None, 0), "remaining": 0}
    known |= {"by_owner": {"Net": 4 * MIB}, "seconds": 0.1, "collect_seconds": 0.0, "trimmed": None}
    return Receipt(**{**known, "errors": (), **facts})


def test_numbers_grow_by_one_whoever_sends(tabs: FakeServer) -> None:
    start = hub.head()["seq"]
    threads = [
        threading.Thread(target=lambda: [hub.send("x", {"a": 1}) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = tabs.of("x")
    assert [it["seq"] for it in sent] == list(range(start + 1, start + 201))
    assert {it["boot"] for it in sent} == {hub.BOOT} and hub.head()["seq"] == start + 200


def test_to_all_or_to_the_tab_that_runs(tabs: FakeServer) -> None:
    assert hub.send("a", {}) and hub.send("b", {}, to_tab=True)
    tabs.client_id = None
    assert not hub.send("c", {}, to_tab=True), "to nobody, and not to all"
    assert [(event, sid) for event, _, sid in tabs.sent] == [("a", None), ("b", "one")]


def test_nothing_is_sent_or_counted_where_nobody_listens(tabs: FakeServer) -> None:
    start = hub.head()
    tabs.sockets.clear()
    assert not hub.send("a", {})
    with Installed(None):
        assert not hub.send("a", {})
    assert tabs.sent == [] and hub.head() == start


def test_a_server_that_closes_is_no_error(tabs: FakeServer, monkeypatch) -> None:
    def closed(*_args: object) -> None:
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(tabs, "send_sync", closed)
    start = hub.head()
    assert not hub.send("a", {}) and hub.head() == start


def test_the_last_receipts_are_kept_and_shown(tabs: FakeServer) -> None:
    for at in range(25):
        ledger.add(receipt(remaining=at), f"node {at}")
    kept = ledger.entries()
    assert [it["by"] for it in kept] == [f"node {at}" for at in range(5, 25)]
    assert kept[-1]["freed"] == 4 * MIB and "4.0 MB held" in kept[-1]["text"]
    assert tabs.of("lowtide.receipt")[-1]["receipt"] == kept[-1]


def test_a_receipt_carries_no_path_and_no_hostile_name(tabs: FakeServer) -> None:
    errors = ("cannot open '/srv/secret/x.pt'",)
    owners = {"/srv/secret/model\u202e\x00: unet": MIB, "y" * 10_000: MIB}
    entry = ledger.add(receipt(by_owner=owners, errors=errors), "user")
    assert "secret" not in repr(entry) and "\u202e" not in repr(entry["by_owner"])
    assert "\u202e" not in entry["text"] and len(repr(entry)) < 5000
    assert "model: unet" in entry["by_owner"]


def test_a_runs_releases_are_one_receipt(tabs: FakeServer) -> None:
    run = RunTimeline("r", "npu:0", 0.0)
    assert ledger.add_run(run) is None and ledger.entries() == []
    run.releases += [Release("1", "Net", MIB, 0.25, "x"), Release(None, "Net", 2 * MIB, 0.5, "y")]
    run.releases.append(Release(None, "caches and garbage", MIB, 0.0, "z"))
    entry = ledger.add_run(run)
    assert entry is not None and set(entry) == set(ledger.add(receipt(), "user"))
    assert entry["by_owner"] == {"Net": 3 * MIB, "caches and garbage": MIB}
    assert (entry["freed"], entry["seconds"], entry["before"]) == (4 * MIB, 0.75, None)
    assert entry["by"] == "between nodes" and "4.0 MB left the device in 3 steps" in entry["text"]
