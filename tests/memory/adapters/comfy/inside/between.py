"""Cases: models leave the device between two nodes, by their policy and what is still to run."""

from __future__ import annotations

from lowtide.memory import backend
from lowtide.memory.adapters.comfy import between, executor
from lowtide.memory.adapters.comfy.patchers import Residency, marked
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


def chain(cleanup: str, **settings: str) -> dict[str, tuple]:
    return {
        "s": ("LowtideMemoryLevelSelector", 0, {"cleanup": cleanup}),
        "t": ("LowtideMemorySettings", 0, settings),
        "m": ("Loader", 1),
        "l": ("Lora", 1, "m"),
        "u": ("Use", 1, "l"),
        "st": ("Steps", 3, "u"),
        "see": ("Leave", 1, "st"),
    }


def case_always_in_a_selector_is_for_every_model_of_the_prompt() -> None:
    for cleanup, held in (("always", []), ("pressure", ["1"]), ("off", ["1"])):
        executor.install()
        MODELS[1] = patcher()
        go(runner(), **chain(cleanup))
        assert {"at 1": held} == SEEN, (cleanup, SEEN)
        assert (backend.allocated(GPU) == 0) is (cleanup == "always")
        if cleanup == "always":
            assert backend.reserved(GPU) == 0
        clean()


def case_a_model_with_off_of_its_own_stays_all_the_same() -> None:
    executor.install()
    models("off", 1)
    go(runner(), **chain("always"))
    assert SEEN == {"at 1": ["1"]}
    clean()


def case_under_pressure_the_caches_are_emptied_after_the_run_too() -> None:
    short = between.is_short
    executor.install()
    models("pressure", 1)
    calls = iter([False, True])
    between.is_short = lambda device: next(calls, True)
    try:
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"))
        go(runner(), m=("Loader", 1), u=("Use", 1, "m"), see=("Leave", 1, "u"))
        assert (backend.allocated(GPU), backend.reserved(GPU)) == (0, 0)
    finally:
        between.is_short = short
    clean()


def case_each_moment_has_its_switch() -> None:
    """A node's cached segments go at the moments that are switched on, and at no other."""
    import torch

    did: list[tuple[str, str]] = []
    at = between.cleanup_due

    def due(config, moment, device=None):
        found = at(config, moment, device)
        if found:
            did.append(moment)
        return found

    between.cleanup_due = due
    off = dict.fromkeys(("after_load", "after_lora", "after_step"), "off")
    try:
        for cleanup, settings, expected in (
            ("always", off, []),
            ("off", {**off, "after_load": "on"}, []),
            ("always", {**off, "after_load": "on"}, ["after_load"]),
            ("always", {**off, "after_lora": "on"}, ["after_lora"]),
            ("always", {**off, "after_step": "on"}, ["after_step"] * 3),
        ):
            did.clear()
            executor.install()
            MODELS[1] = patcher()
            torch.zeros(40 * MIB, dtype=torch.uint8, device=DEVICE)
            go(runner(), **chain(cleanup, **settings))
            assert did == expected, (cleanup, settings, did)
            reasons = [it["reason"] for it in executor.timelines()[-1]["releases"]]
            for moment in set(expected):
                assert moment.replace("_", " ") in reasons, (moment, reasons)
            clean()
    finally:
        between.cleanup_due = at


def case_after_unload_decides_whether_the_caches_are_emptied() -> None:
    emptied: list[int] = []
    keep = between.empty_caches

    def empty() -> None:
        emptied.append(1)
        keep()

    between.empty_caches = empty
    quiet = {"after_load": "off", "after_lora": "off"}
    try:
        for said, times in (("on", 1), ("off", 0)):
            executor.install()
            MODELS[1] = patcher()
            graph = chain("always", after_unload=said, **quiet)
            seen: list[int] = []
            settle = between.settle
            between.settle = lambda seen=seen, settle=settle: (
                seen.append(len(emptied)), settle()
            )  # fmt: skip
            try:
                emptied.clear()
                go(runner(), **graph)
            finally:
                between.settle = settle
            assert seen == [times], (said, seen)
            clean()
    finally:
        between.empty_caches = keep


def case_on_exit_off_keeps_the_models() -> None:
    executor.install()
    MODELS[1] = patcher()
    go(runner(), **chain("always", on_exit="off"))
    assert SEEN == {"at 1": ["1"]}
    clean()


def case_host_memory_goes_after_the_run_by_choice() -> None:
    asked: list[bool] = []
    keep = between.drop_results_after_this_run
    between.drop_results_after_this_run = lambda *, unload: asked.append(unload)
    try:
        for cleanup, said, expected in (
            ("always", "on", [True]),
            ("always", "off", []),
            ("off", "on", []),
        ):
            asked.clear()
            executor.install()
            MODELS[1] = patcher()
            go(runner(), **chain(cleanup, cleanup_host=said))
            assert asked == expected, (cleanup, said)
            clean()
    finally:
        between.drop_results_after_this_run = keep
