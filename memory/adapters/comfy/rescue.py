"""What happens to a node that fails: its tensors go, and out of memory it may run again with less.

``execution.get_output_data`` is what runs a node's function; it is wrapped while Lowtide follows
the prompts, and passes everything through until an error comes out of it. An error's frames hold
the tensors of the run that failed, on the device, until the prompt is over: they are dropped at
once. Output nodes are never run twice: what they did to the world is done.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from ... import backend
from ...errors import LowtideError
from ...frames import forget_locals
from ...rescue import Rung, ladder
from ...units import format_bytes
from . import apply, between, swallowed
from .hints import drop_hints
from .models import unload_all
from .patchers import is_dynamic

logger = logging.getLogger("lowtide")

Wanted = Callable[[], bool]
Tell = Callable[[str, Rung, str, float], None]

_state: dict[str, Any] = {"original": None}
_patches = swallowed.LostPatches()


def install(wanted: Wanted, tell: Tell) -> None:
    """Wrap ComfyUI's function; idempotent.

    Args:
        wanted: whether the prompt that is running asks for rescue.
        tell: is given the node, the rung, what came of it and the seconds it took.
    """
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
        before = _begun()
        call = signature.bind(*args, **kwargs)
        try:
            result = await original(*args, **kwargs)
            lost = _lost()
            if lost is None or not _can_run_again(lost, call.arguments["obj"], wanted, before):
                return result
            first: BaseException = lost
        except BaseException as error:
            drop_hints(call.arguments["input_data_all"])
            if not _can_run_again(error, call.arguments["obj"], wanted, before):
                _let_go(error)
                raise
            first = error
        # Out of the handler: the frames of the failed run may go, and the tensors with them.
        return await _again(original, call, first, tell)

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


def _lost() -> BaseException | None:
    """The error the core should have raised in the node that has ended."""
    lost = _patches.take()
    if not lost:
        return None
    import torch

    text = f"out of memory: ComfyUI left {len(lost)} LoRA patches out of the weights ({lost[0]})"
    logger.warning("%s; the picture would not be the one that was asked for", text)
    return torch.OutOfMemoryError(text)


def _can_run_again(error: BaseException, node: Any, wanted: Wanted, before: int) -> bool:
    try:
        return (
            swallowed.for_want_of_memory(error, before)
            and not getattr(node, "OUTPUT_NODE", False)
            and bool(wanted())
        )
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
    original: Any, call: inspect.BoundArguments, error: BaseException, tell: Tell
) -> Any:
    node, inputs = str(call.arguments["unique_id"]), call.arguments["input_data_all"]
    for rung in ladder():
        started = time.perf_counter()
        changed = _prepared(rung, inputs, error)
        if changed is None:
            continue
        logger.warning("node %s is out of memory; run again: %s", node, rung.does)
        call.arguments["input_data_all"] = changed
        before = _begun()
        try:
            result = await original(*call.args, **call.kwargs)
            lost = _lost()
            if lost is not None:
                raise lost
        except BaseException as failure:
            if not swallowed.for_want_of_memory(failure, before):
                _let_go(failure)
                tell(node, rung, f"{type(failure).__name__}", time.perf_counter() - started)
                raise
            error = failure
            tell(node, rung, "out of memory again", time.perf_counter() - started)
        else:
            tell(node, rung, "finished", time.perf_counter() - started)
            return result
    _let_go(error)
    raise error


def _prepared(rung: Rung, inputs: dict[str, Any], error: BaseException) -> dict[str, Any] | None:
    """The inputs for one attempt, on an emptied device; ``None`` where the rung changes nothing."""
    changed = inputs
    if rung.config is not None:
        try:
            changed = {name: [_with(rung, it) for it in values] for name, values in inputs.items()}
        except LowtideError as refusal:
            logger.warning("Lowtide skips %r: %s", rung.name, refusal)
            return None
        if all(
            one is other
            for name, values in inputs.items()
            for one, other in zip(values, changed[name], strict=True)
        ):
            return None
    _let_go(error)
    unload_all()
    swallowed.forget_failed_loads(inputs.values())
    between.settle()
    return changed


def _with(rung: Rung, value: Any) -> Any:
    """A model, text encoder, VAE or guider under the rung's configuration; else the value."""
    config = rung.config
    assert config is not None
    entries: list[Any] = []
    if hasattr(value, "first_stage_model") and hasattr(value, "latent_dim"):
        share = apply.divide(config, model=None, clip=None, vae=value)
        return apply.to_vae(config, share, value, entries)
    if rung.name == "tile":
        return value
    if hasattr(value, "cond_stage_model") and hasattr(value, "patcher"):
        share = apply.divide(config, model=None, clip=value, vae=None)
        return apply.to_clip(config, share, value, entries)
    if hasattr(value, "model_patcher") and hasattr(value, "set_conds"):
        twin = copy.copy(value)
        twin.model_patcher = _model(config, value.model_patcher, entries)
        twin.model_options = twin.model_patcher.model_options
        return twin
    if hasattr(value, "model_size") and hasattr(value, "is_clone"):
        return _model(config, value, entries)
    return value


def _model(config: Any, patcher: Any, entries: list[Any]) -> Any:
    if is_dynamic(patcher):
        return patcher
    share = apply.divide(config, model=patcher, clip=None, vae=None)
    return apply.to_model(config, share, patcher, entries)


def describe(rung: Rung, outcome: str, seconds: float) -> str:
    """One line about an attempt, for logs and receipts."""
    import comfy.model_management as mm

    device = backend.device_of(mm.get_torch_device())
    held = backend.allocated(device)
    return (
        f"{rung.name} ({rung.does}): {outcome} after {seconds:.1f} s, "
        f"{format_bytes(held)} allocated now"
    )
