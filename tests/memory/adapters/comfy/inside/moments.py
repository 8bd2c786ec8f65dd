"""Cases: a graph's policy holds for all its models, and each moment of cleanup has its switch."""

from __future__ import annotations

from between import GPU, clean, models
from lowtide.memory import backend
from lowtide.memory.adapters.comfy import between, executor
from prompts import DEVICE, MIB, MODELS, SEEN, go, runner
from small import patcher


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
