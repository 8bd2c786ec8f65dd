"""Cases: the timeline of a prompt, node by node, against the accelerator's counters."""

from __future__ import annotations

import comfy.model_management as mm
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import executor
from lowtide.memory.adapters.comfy.patchers import with_residency
from lowtide.memory.adapters.comfy.residency import Residency
from prompts import DEVICE, MIB, MODELS, Node, go, kinds, runner
from small import forward, load, patcher, unload

import nodes

GPU = backend.device_of(DEVICE)


def last() -> dict:
    return executor.timelines()[-1]


def spans() -> dict[str, dict]:
    return {span["node"]: span for span in last()["nodes"]}


def clean() -> None:
    unload()
    MODELS.clear()
    executor.uninstall()
    backend.empty_cache(GPU)
    assert backend.allocated(GPU) == 0


def case_each_node_has_its_own_peak() -> None:
    for kind in kinds():
        executor.install()
        one = runner(kind)
        ran = go(one, x=("Node", 3), y=("Node", 9, "x"), z=("Node", 5, "y"), out=("Leave", 0, "z"))
        assert ran == ["x", "y", "z", "out"]
        found = spans()
        assert {name: found[name]["peak_allocated"] for name in "xyz"} == {
            "x": 3 * MIB,
            "y": 9 * MIB,
            "z": 5 * MIB,
        }
        assert last()["peak_allocated"] == 9 * MIB
        assert last()["status"] == "done" and last()["after_allocated"] == 0
        assert all(span["seconds"] > 0 and span["status"] == "done" for span in found.values())
        assert found["y"]["class_type"] == "Node" and found["y"]["parent"] is None
        assert found["y"]["peak_reserved"] >= found["y"]["peak_allocated"]
        assert found["y"]["host_peak"] > 0 and found["y"]["device_peak"] is not None
        clean()


def case_cached_nodes_have_no_span() -> None:
    for kind in kinds():
        executor.install()
        one = runner(kind)
        go(one, x=("Node", 3), out=("Leave", 0, "x"))
        assert go(one, x=("Node", 3), out=("Leave", 1, "x")) == ["out"]
        assert set(spans()) == {"out"}
        assert last()["cached"] == ("x",)
        clean()


def case_a_models_weights_count_where_they_are_loaded() -> None:
    executor.install()
    MODELS[1] = patcher()
    size = MODELS[1].model_size()
    go(runner(), m=("Loader", 1), u=("Use", 2, "m"), n=("Node", 1, "u"), out=("Leave", 0, "n"))
    found = spans()
    assert found["m"]["peak_allocated"] < size
    assert size + 2 * MIB <= found["u"]["peak_allocated"] < size + 3 * MIB
    assert found["u"]["before"] < size <= found["u"]["after"]
    assert size + MIB <= found["n"]["peak_allocated"] < size + 2 * MIB
    clean()


def case_steps_have_their_own_peaks() -> None:
    executor.install()
    go(runner(), s=("Steps", 4), out=("Leave", 0, "s"))
    assert list(spans()["s"]["steps"]) == [n * MIB for n in (1, 2, 3, 4)], spans()["s"]["steps"]
    clean()


def case_a_settings_node_leaves_the_steps_out() -> None:
    for said, steps in (("off", ()), ("level", (MIB, 2 * MIB)), ("on", (MIB, 2 * MIB))):
        executor.install()
        go(
            runner(),
            q=("LowtideMemorySettings", 0, {"step_peaks": said}),
            s=("Steps", 2),
            out=("Leave", 0, "s", "q"),
        )
        found = spans()["s"]
        assert (found["steps"], found["peak_allocated"]) == (steps, 2 * MIB), said
        clean()


def case_a_node_that_expands_includes_what_it_made() -> None:
    executor.install()
    go(runner(), x=("Node", 30), e=("Expands", 4, "x"), out=("Leave", 0, "e"))
    found = spans()
    inner = [span for span in found.values() if span["parent"] == "e"]
    assert sorted(span["peak_allocated"] for span in inner) == [4 * MIB, 8 * MIB]
    assert found["e"]["peak_allocated"] == 8 * MIB
    clean()


def case_a_lazy_node_does_not_count_what_it_waited_for() -> None:
    executor.install()
    go(runner(), x=("Node", 30), lazy=("Lazy", 2, "x"), out=("Leave", 0, "lazy"))
    found = spans()
    assert (found["x"]["peak_allocated"], found["lazy"]["peak_allocated"]) == (30 * MIB, 2 * MIB)
    assert found["lazy"]["seconds"] < last()["seconds"]
    clean()


def case_failed_and_stopped_nodes_close_their_span() -> None:
    for kind, status in (("Fails", "failed"), ("Stops", "interrupted")):
        executor.install()
        go(runner(), x=("Node", 3), bad=(kind, 6, "x"))
        assert (last()["status"], spans()["bad"]["status"]) == (status, status)
        assert spans()["bad"]["peak_allocated"] == 6 * MIB
        assert spans()["x"]["status"] == "done"
        clean()


def case_runs_are_bounded_and_forgotten() -> None:
    from lowtide.memory.timeline import KEPT

    executor.install()
    one = runner()
    for index in range(KEPT + 3):
        go(one, x=("Node", index), out=("Leave", index, "x"))
    assert len(executor.timelines()) == KEPT
    clean()
    assert executor.timelines() == []


def case_nothing_of_a_prompt_keeps_a_model_alive() -> None:
    import gc
    import weakref

    executor.install()
    MODELS[1] = patcher()
    one = runner()
    go(one, m=("Loader", 1), u=("Use", 2, "m"), out=("Leave", 0, "u"))
    model = weakref.ref(MODELS[1].model)
    one.reset()
    MODELS.clear()
    unload()
    mm.cleanup_models()
    gc.collect()  # ComfyUI's own caches make a cycle
    assert model() is None
    clean()


class Forward(Node):
    """Runs its model ``mb`` times, under a cap of half of it if ``b`` is given."""

    def work(self, mb, a, b):
        one = with_residency(a, Residency(cap=a.model_size() // 2)) if b else a
        load(one)
        for _ in range(mb):
            forward(one)
        return (one,)


nodes.NODE_CLASS_MAPPINGS["Forward"] = Forward


class Frees(Node):
    def work(self, mb, a, b):
        unload()
        return (mb,)


nodes.NODE_CLASS_MAPPINGS["Frees"] = Frees


def case_bytes_moved_are_the_accelerators_own() -> None:
    """Beside the weights only a sample of some kilobytes goes to the device and back."""
    from lowtide_sim import current

    handle = current()
    few = 64 * 1024
    counts: list[int] = []

    class Counts(Node):
        def work(self, mb, a, b):
            counts.append(handle.counters()["h2d"])
            counts.append(handle.counters()["d2h"])
            return (a,)

    nodes.NODE_CLASS_MAPPINGS["Counts"] = Counts
    for capped in (None, "x"):
        for kind in kinds():
            executor.install()
            MODELS[1] = patcher()
            size = MODELS[1].model_size()
            counts.clear()
            go(
                runner(kind), m=("Loader", 1), x=("Node", 1), c=("Counts", 0, "m", "x"),
                f=("Forward", 3, "c", capped or 0), d=("Counts", 1, "f"), g=("Frees", 0, "d"),
                e=("Counts", 2, "g"), out=("Leave", 0, "e"),
            )  # fmt: skip
            found = spans()
            to = counts[2] - counts[0]
            assert 0 <= to - found["f"]["to_device"] < few, (capped, to, found["f"]["to_device"])
            assert found["f"]["to_device"] > (size if capped else size - 1)
            assert found["x"]["to_device"] == found["m"]["to_device"] == 0
            back = counts[5] - counts[3]
            assert abs(back - found["g"]["from_device"]) < few, (back, found["g"]["from_device"])
            assert last()["to_device"] == found["f"]["to_device"]
            assert found["f"]["pages_peak"] is None
            clean()


def case_counting_is_undone() -> None:
    import comfy.ops

    before = comfy.ops.cast_bias_weight, mm.LoadedModel.model_load
    executor.install()
    assert comfy.ops.cast_bias_weight is not before[0]
    executor.uninstall()
    assert (comfy.ops.cast_bias_weight, mm.LoadedModel.model_load) == before
