"""Cases: models leave the device between two nodes, by their policy and what is still to run."""

from __future__ import annotations

from lowtide.memory import backend
from lowtide.memory.adapters.comfy import between, executor
from lowtide.memory.adapters.comfy.patchers import marked
from lowtide.memory.adapters.comfy.residency import Residency
from prompts import DEVICE, MIB, MODELS, SEEN, go, kinds, runner
from small import patcher, unload

GPU = backend.device_of(DEVICE)


def models(policy: str, *names: int) -> None:
    for name in names:
        MODELS[name] = marked(patcher(), Residency(cleanup=policy))


def clean() -> None:
    unload()
    MODELS.clear()
    SEEN.clear()
    executor.uninstall()
    backend.empty_cache(GPU)
    assert backend.allocated(GPU) == 0


def releases() -> list[tuple[str | None, int]]:
    return [(it["after"], it["freed"]) for it in executor.timelines()[-1]["releases"]]


def case_a_model_leaves_once_no_later_node_needs_it() -> None:
    for kind in kinds():
        executor.install()
        models("always", 1, 2)
        size = MODELS[1].model_size()
        go(
            runner(kind),
            m=("Loader", 1),
            n=("Loader", 2),
            u=("Use", 1, "m"),
            see=("Leave", 1, "u"),
            v=("Use", 1, "n", "see"),
            see2=("Leave", 2, "v"),
            w=("Use", 1, "m", "see2"),
            see3=("Leave", 3, "w"),
        )
        # 1 stays beside the first look, since w needs it; 2 is gone by the second.
        assert SEEN == {"at 1": ["1"], "at 2": ["1"], "at 3": []}, (kind, SEEN)
        assert releases() == [("v", size), ("w", size)]
        assert (backend.allocated(GPU), backend.reserved(GPU)) == (0, 0)
        clean()


def case_without_a_policy_all_stay() -> None:
    for policy in ("off", "pressure"):
        executor.install()
        models(policy, 1)
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"))
        assert SEEN == {"at 1": ["1"]}
        assert releases() == []
        clean()


def case_under_pressure_they_leave_when_memory_is_short() -> None:
    short = between.is_short
    for is_short, held in ((False, ["1"]), (True, [])):
        executor.install()
        models("pressure", 1)
        between.is_short = lambda device, is_short=is_short: is_short
        try:
            go(runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"))
            assert {"at 1": held} == SEEN
        finally:
            between.is_short = short
        clean()


def case_under_pressure_they_leave_when_a_later_model_would_not_fit() -> None:
    ample = between.AMPLE
    for share, size, held in ((2.0, 10**12, []), (2.0, None, ["1"]), (ample, 10**12, ["1"])):
        executor.install()
        models("pressure", 1, 2)
        MODELS[2].size = size or MODELS[2].model_size()
        between.AMPLE = share  # above 1: the later nodes are asked, whatever is free
        try:
            go(
                runner(),
                m=("Loader", 1),
                n=("Loader", 2),
                u=("Use", 1, "m", "n"),
                see=("Leave", 1, "u"),
                later=("Leave", 2, "n", "see"),
            )
        finally:
            between.AMPLE = ample
        assert SEEN["at 1"] == held, (share, size)
        clean()


def case_a_cached_node_hands_on_what_it_holds() -> None:
    for kind in kinds():
        executor.install()
        models("always", 1)
        one = runner(kind)
        graph = {"m": ("Loader", 1), "u": ("Use", 1, "m"), "see": ("Leave", 1, "u")}
        go(one, **graph)
        assert SEEN == {"at 1": []}
        # m is cached now; u runs, see looks, and w needs the model after it.
        ran = go(
            one, m=("Loader", 1), u=("Use", 2, "m"), see=("Leave", 2, "u"),
            w=("Use", 3, "m", "see"), see2=("Leave", 3, "w"),
        )  # fmt: skip
        assert "m" not in ran
        assert SEEN == {"at 1": [], "at 2": ["1"], "at 3": []}, (kind, SEEN)
        clean()


def case_a_model_within_a_list_or_an_object_counts_as_needed() -> None:
    from lowtide.memory.adapters.comfy.graph import patchers_in

    one, two = patcher(), patcher()

    class Control:
        def get_models(self):
            return [two]

    class Guider:
        model_patcher = one
        conds = {"positive": [{"control": Control()}]}

    assert list(patchers_in(Guider())) == [one, two]
    assert list(patchers_in([[None, {"control": Control(), "pooled": 3}]])) == [two]
    assert list(patchers_in([one, "text", 5, None])) == [one]


def case_an_error_and_an_interrupt_leave_nothing_under_always() -> None:
    for bad in ("Fails", "Stops"):
        executor.install()
        models("always", 1)
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"), bad=(bad, 7, "u", "m"))
        assert (backend.allocated(GPU), backend.reserved(GPU)) == (0, 0), bad
        clean()


def case_garbage_is_collected_only_when_some_is_left() -> None:
    import gc
    from types import SimpleNamespace

    import torch

    calls: list[int] = []

    def collect(generation=2):
        calls.append(generation)
        return gc.collect(generation)

    between.gc = SimpleNamespace(collect=collect)
    try:
        executor.install()
        models("always", 1)
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"))
        assert calls == []

        class Cycle:
            pass

        gc.disable()
        cycle = Cycle()
        cycle.own, cycle.held = cycle, torch.zeros(MIB, dtype=torch.uint8, device=DEVICE)
        del cycle
        go(runner(), m=("Loader", 1), u=("Use", 2, "m"), see=("Leave", 1, "u"))
        assert calls == [1]
        assert (backend.allocated(GPU), backend.reserved(GPU)) == (0, 0)
    finally:
        gc.enable()
        between.gc = gc
    clean()


def case_a_model_that_unfolded_nodes_still_need_stays() -> None:
    for kind in kinds():
        for node in ("Unfolds", "Gives"):
            executor.install()
            models("always", 1)
            size = MODELS[1].model_size()
            go(runner(kind), e=(node, 1), out=("Leave", 2, "e"))
            assert SEEN == {"at 1": ["1"], "at 2": []}, (kind, node, SEEN)
            assert [freed for _, freed in releases()] == [size], (node, releases())
            clean()


def case_where_no_cache_says_what_is_needed_all_stay() -> None:
    from lowtide.memory.adapters.comfy import visits

    keep = visits.outputs_of
    visits.outputs_of = lambda caches, node: None
    try:
        executor.install()
        models("always", 1)
        go(
            runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"),
            w=("Use", 1, "m", "see"), out=("Leave", 2, "w"),
        )  # fmt: skip
        assert SEEN["at 1"] == ["1"], SEEN
        assert [after for after, _ in releases()][-1] is None or len(releases()) == 1
        assert backend.allocated(GPU) == 0
    finally:
        visits.outputs_of = keep
    clean()
