"""What happens to a node that fails: its tensors go, and out of memory it may run again with less.

``execution.get_output_data`` is what runs a node's function; it is wrapped while Lowtide follows
the prompts, and passes everything through until an error comes out of it. An error's frames hold
the tensors of the run that failed, on the device, until the prompt is over: they are dropped at
once. Output nodes, and nodes that call a paid service, are never run twice: what they did to the
world is done. An asynchronous node that runs out after it has yielded is not run again: its
error comes out of a task of ComfyUI's, not of this function.

Hazard: an error refers to the frames it came through, and a frame that keeps the error makes a
cycle that holds the node's inputs until the collector comes. No frame here outlives its error.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ... import backend
from ...frames import forget_locals
from ...rescue import TRIES, Rung, ladder
from ...timeline import Attempt
from ...units import format_bytes
from . import between, swallowed
from .hints import drop_hints
from .lessened import inputs_under
from .models import unload_all

logger = logging.getLogger("lowtide")

_state: dict[str, Any] = {"original": None}
_patches = swallowed.LostPatches()


@dataclass(frozen=True)
class Rules:
    """What the running prompt says about rescue.

    Attributes:
        wanted: whether it asks for it at all.
        agreed: whether a node, by its id, may run again; may take its time to find out.
        policy: its cleanup policy, for models that have none of their own.
        tell: is given every attempt once it is over.
    """

    wanted: Callable[[], bool]
    agreed: Callable[[str], bool]
    policy: Callable[[], str]
    tell: Callable[[Attempt], None]


def install(rules: Rules) -> None:
    """Wrap ComfyUI's function; idempotent."""
    if _state["original"] is not None:
        return
    import execution

    original = execution.get_output_data
    signature = inspect.signature(original)
    if not {"unique_id", "obj", "input_data_all"} <= set(signature.parameters):
        logger.warning("this ComfyUI runs its nodes in a way Lowtide does not know: no rescue")
        return

    @functools.wraps(original)
    async def get_output_data(*args: Any, **kwargs: Any) -> Any:
        failed: list[BaseException] = []
        before = _begun()
        call = signature.bind(*args, **kwargs)
        try:
            result = await original(*args, **kwargs)
            lost = _lost()
            if lost is None:
                return result
            failed.append(torch.OutOfMemoryError(lost))
            if not _can_run_again(failed[0], call.arguments["obj"], rules, before):
                return result
        except BaseException as error:
            drop_hints(call.arguments["input_data_all"])
            if not _can_run_again(error, call.arguments["obj"], rules, before):
                _let_go(error)
                raise
            failed.append(error)
        # Out of the handler: the frames of the failed run may go, and the tensors with them.
        return await _again(original, call, failed, rules)

    execution.get_output_data = get_output_data
    logging.getLogger().addFilter(_patches)
    _state["original"] = original


def uninstall() -> None:
    """Put ComfyUI's function back."""
    original, _state["original"] = _state["original"], None
    if original is not None:
        import execution

        execution.get_output_data = original
        logging.getLogger().removeFilter(_patches)


def _begun() -> int:
    """A node begins: how often the device has run out of memory before it."""
    try:
        _patches.take()
        return swallowed.failures()
    except Exception:
        logger.exception("Lowtide could not count failed allocations")
        return 0


def _lost() -> str | None:
    """What the core should have said when the node that has ended was out of memory."""
    lost = _patches.take()
    if not lost:
        return None
    text = f"out of memory: ComfyUI left {len(lost)} LoRA patches out of the weights ({lost[0]})"
    logger.warning("%s; the picture would not be the one that was asked for", text)
    return text


def _can_run_again(error: BaseException, node: Any, rules: Rules, before: int) -> bool:
    try:
        if not swallowed.for_want_of_memory(error, before):
            return False
        acts = getattr(node, "OUTPUT_NODE", False) or getattr(node, "API_NODE", False)
        return not acts and rules.wanted()
    except Exception:
        logger.exception("Lowtide could not look at a failed node")
        return False


def _let_go(error: BaseException) -> None:
    """Drop the locals of a failed node's frames; the traceback still prints."""
    try:
        forget_locals(error)
    except Exception:
        logger.exception("Lowtide could not let go of a failed node's tensors")


async def _again(
    original: Any,
    call: inspect.BoundArguments,
    failed: list[BaseException],
    rules: Rules,
) -> Any:
    """Run the node again, a rung at a time; the last error comes out if none is enough."""
    node, inputs = str(call.arguments["unique_id"]), call.arguments["input_data_all"]
    _let_go(failed[0])
    if not await asyncio.to_thread(rules.agreed, node):
        raise failed.pop()
    for number, rung in enumerate(ladder(), 1):
        started = time.perf_counter()
        changed = _changed(rung, inputs, rules.policy)
        if changed is None:
            continue
        freed = _made_room(failed[0], inputs)
        if freed is None:
            break
        logger.warning(
            "node %s is out of memory; run again (try %d of at most %d): %s",
            *(node, number, TRIES, rung.does),
        )
        call.arguments["input_data_all"] = changed
        outcome = "finished"
        before = _begun()
        try:
            result = await original(*call.args, **call.kwargs)
            lost = _lost()
            if lost is None:
                return result
            raise torch.OutOfMemoryError(lost)
        except BaseException as failure:
            if not swallowed.for_want_of_memory(failure, before):
                _let_go(failure)
                outcome = type(failure).__name__
                failed.clear()
                raise
            failed[:] = [failure]
            outcome = "out of memory again"
        finally:
            rules.tell(
                Attempt(node, rung.name, outcome, time.perf_counter() - started, max(0, freed))
            )
            if outcome == "finished":
                failed.clear()
    _let_go(failed[0])
    raise failed.pop()


def _changed(
    rung: Rung, inputs: dict[str, Any], policy: Callable[[], str]
) -> dict[str, Any] | None:
    """The inputs for one attempt; ``None`` where the rung changes none of them."""
    try:
        return inputs_under(rung, inputs, policy)
    except Exception as refusal:
        # Whatever stands against one rung must not take the place of the node's own error.
        logger.warning("Lowtide skips %r: %s", rung.name, refusal, exc_info=True)
        return None


def _made_room(error: BaseException, inputs: dict[str, Any]) -> int | None:
    """Empty the device; the bytes given back to the driver. ``None`` if that failed."""
    import comfy.model_management as mm

    device = backend.device_of(mm.get_torch_device())
    try:
        before = backend.reserved(device) or 0
        _let_go(error)
        # A driver's error waits to be fetched, and would come out of the next call.
        getattr(mm, "discard_cuda_async_error", lambda: None)()
        unload_all()
        swallowed.forget_failed_loads(inputs.values())
        between.settle()
        return before - (backend.reserved(device) or 0)
    except Exception:
        logger.exception("Lowtide could not empty the device for another try")
        return None


def describe(attempt: Attempt) -> str:
    """One line about an attempt, for logs and receipts."""
    return (
        f"{attempt.rung}: {format_bytes(attempt.freed)} freed, "
        f"{attempt.outcome} after {attempt.seconds:.1f} s"
    )
