"""Records of runs: bounded, plain, safe to read while they are written."""

import json
import threading

from lowtide.memory.timeline import Attempt, NodeSpan, Release, RunTimeline, Timelines


def run(name="a"):
    return RunTimeline(name, "npu:0", 0.0)


def span(node, peak=1):
    return NodeSpan(node, "Node", None, 0.0, 0.1, peak, peak, 0, 0, None, None, "done", (1, 2))


def test_the_oldest_run_is_forgotten_first():
    kept = Timelines(kept=2)
    for name in "abc":
        kept.begin(run(name))
    assert [one["run"] for one in kept.all()] == ["b", "c"]
    assert kept.last().run == "c"
    kept.clear()
    assert kept.all() == [] and kept.last() is None


def test_each_event_finds_its_list():
    kept, one = Timelines(), run()
    kept.begin(one)
    for event in (span("1"), Release("1", "UNet", 5, 0.1, "done"), Attempt("1", "free", "ok", 0.2)):
        kept.add(one, event)
    assert (len(one.nodes), len(one.releases), len(one.attempts)) == (1, 1, 1)


def test_a_nodes_last_span_is_found():
    one = run()
    one.nodes += [span("1", 1), span("2", 2), span("1", 3)]
    assert one.of("1").peak_allocated == 3
    assert one.of("9") is None


def test_a_run_is_plain_json():
    kept, one = Timelines(), run()
    kept.begin(one)
    kept.add(one, span("1"))
    found = json.loads(json.dumps(kept.all()))
    assert found[0]["nodes"][0]["steps"] == [1, 2]


def test_reading_while_another_thread_writes():
    kept = Timelines(kept=2)
    kept.begin(run())

    def write():
        for index in range(300):
            kept.add(kept.last(), span(str(index)))
            if index % 50 == 0:
                kept.begin(run())

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        json.dumps(kept.all())
    thread.join()
    assert len(kept.all()) == 2


def test_a_listener_hears_of_a_run_from_its_beginning_to_its_end():
    kept, one, heard = Timelines(), run(), []

    def listener(*said):
        heard.append(said)

    kept.subscribe(lambda *said: 1 / 0)
    kept.subscribe(listener)
    kept.subscribe(listener)
    kept.begin(one)
    kept.add(one, span("1"))
    one.status = "done"
    kept.end(one)
    assert [(it.run, event and event.node) for it, event in heard] == [
        ("a", None),
        ("a", "1"),
        ("a", None),
    ]


def test_samples_are_part_of_a_run():
    one = run()
    one.samples.add((0.0, 1, 2, 3))
    assert json.loads(json.dumps(one.to_dict()))["samples"] == [[0.0, 1, 2, 3]]
