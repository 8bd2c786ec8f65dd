"""Everything of Lowtide's that lives during a prompt, followed by weak references to its end.

Nothing is collected meanwhile: what only a collection could free is a cycle of ours, and stays.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections import Counter
from typing import Any

from executed import WATCH, done, failure, fresh, interrupt, run, runner
from lowtide.memory import learning, verified
from lowtide.memory.adapters.comfy import executor as followed
from workflows import ALL, pipelines_in


class Followed:
    """Weak references to our objects, by their identity; ``bind`` adds a cycle to each."""

    def __init__(self, bind: bool) -> None:
        self._bind = bind
        self._known = {id(it) for it in gc.get_objects()}
        self._seen: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.untraceable: Counter[str] = Counter()

    def look(self, *_: object) -> None:
        """Follow what is new."""
        for one in gc.get_objects():
            if not _is_ours(one) or id(one) in self._known:
                continue
            found = self._seen.get(id(one))
            if found is None or found[0]() is not one:
                self._follow(one)

    def _follow(self, one: Any) -> None:
        name = _name(one)
        try:
            self._seen[id(one)] = (weakref.ref(one), name)
        except TypeError:
            self.untraceable[name] += 1
            return
        if self._bind and not isinstance(one, type) and hasattr(one, "__dict__"):
            vars(one)["bound"] = one

    def seen(self) -> Counter[str]:
        return Counter(name for _, name in self._seen.values())

    def left(self) -> Counter[str]:
        return Counter(name for ref, name in self._seen.values() if ref() is not None)

    def holders(self) -> dict[str, list[str]]:
        """What refers to what is left."""
        found: dict[str, list[str]] = {}
        for ref, name in self._seen.values():
            one = ref()
            if one is not None and name not in found:
                found[name] = [
                    f"{type(it).__name__} {str(it)[:120]}"
                    for it in gc.get_referrers(one)
                    if not isinstance(it, types.FrameType)
                ]
        return found


_OF_KIND: dict[type, bool | None] = {}
"""Whether objects of a type are ours; ``None`` where that depends on the object."""


def _is_ours(one: Any) -> bool:
    kind = type(one)
    if kind not in _OF_KIND:
        named = kind is types.FunctionType or issubclass(kind, type)
        _OF_KIND[kind] = None if named else str(kind.__module__).startswith("lowtide.")
    ours = _OF_KIND[kind]
    if ours is None:
        return str(one.__module__).startswith("lowtide.") and "<locals>" in one.__qualname__
    return ours


def _name(one: Any) -> str:
    named = one if isinstance(one, (types.FunctionType, type)) else type(one)
    return f"{named.__module__.removeprefix('lowtide.')}.{named.__qualname__}"


def of(
    workflow: str,
    level: str,
    pipelines: str,
    pipeline: str,
    *,
    bind: bool = False,
    stop: bool = False,
    collect: bool = False,
) -> dict[str, Any]:
    """What was seen, what was left after the prompt, and what after its results were dropped.

    ``bind`` adds a cycle to each object; ``stop`` interrupts the prompt at its second step;
    ``collect`` allows a collection once the results are dropped.
    """
    pipelines_in(pipelines, pipeline)
    graph = ALL[workflow](level=level)
    fresh()
    followed.install()
    done(runner(), graph)  # classes and caches of the process's first run
    fresh()
    learning.summary()  # opens the history
    real, gc.collect = gc.collect, lambda *_: 0
    real()
    gc.disable()
    try:
        followed.install()
        found = Followed(bind)

        def stepped(node: str, value: int) -> None:
            found.look()
            if stop and value == 2:
                interrupt()

        WATCH.after, WATCH.stepped = found.look, stepped
        one = runner()
        assert run(one, graph) is not stop, failure(one)
        WATCH.__init__()
        after = found.left()
        _drop_results(one)
        del one
        fresh()
        _forget_progress()
        verified.begin()  # its figures go with the next prompt
        assert learning.flush(30), "the history's thread still writes"
        learning._expected.clear()  # it stays for the next run, within bounds
        if collect:
            real()
        return {
            "seen": found.seen(),
            "after": after,
            "left": found.left(),
            "holders": found.holders(),
            "untraceable": found.untraceable,
        }
    finally:
        gc.collect = real
        gc.enable()
        gc.collect()


def _drop_results(one: Any) -> None:
    """Empties the executor's caches, which ComfyUI leaves to the collector."""
    todo = [*one.caches.all]
    for cache in todo:
        todo += getattr(cache, "subcaches", {}).values()
    for cache in todo:
        cache.cache.clear()
        getattr(cache, "subcaches", {}).clear()
        cache.cache_key_set = None
    one.history_result = {}


def _forget_progress() -> None:
    """ComfyUI's registry of the last prompt's progress goes with the next prompt."""
    from comfy_execution import progress

    progress.get_progress_state().handlers.clear()  # one of ComfyUI's refers back to it
    progress.global_progress_registry = None
