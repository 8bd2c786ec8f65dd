"""What a measurement was of: everything that a step's memory depends on, as a hashable value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from .float8_layer import Float8Layer, parts_of
from .limits import leaves_of
from .residency import residency_of


def of_run(patcher: Any, noise_shape: Any, conds: Any) -> Hashable:
    """A whole sampling, as far as it is known before it begins."""
    rows = []
    for name, some in sorted(conds.items()):
        for cond in some:
            shapes = sorted(
                (key, tuple(value.shape)) for key, value in cond.items() if hasattr(value, "shape")
            )
            controls = tuple(type(control).__name__ for control in _chain(cond))
            rows.append((name, tuple(shapes), repr(cond.get("area")), controls))
    shape = tuple(noise_shape)
    stored, options = _stored(patcher), _options(patcher.model_options)
    return ("run", shape, tuple(rows), stored, _patches(patcher), options)


def of_step(run: Hashable, conds: Any, x_in: Any, timestep: Any, model_options: Any) -> Hashable:
    """One prediction of a run: shapes, and which conds and ControlNets are active at this time."""
    rows = []
    for index, some in enumerate(conds):
        for cond in some or ():
            if _is_active(cond, timestep):
                rows.append(
                    (index, _shapes(cond), repr(cond.get("area")), _controls(cond, timestep))
                )
    shape = (tuple(x_in.shape), str(x_in.dtype))
    return ("step", run, shape, tuple(rows), _options(model_options))


def active(conds: Any, timestep: Any) -> int:
    """How many conds take part in a step: the most that one batch could hold."""
    return sum(_is_active(cond, timestep) for some in conds for cond in some or ())


def controls_of(conds: Any) -> list[Any]:
    """The patchers with a residency among the ControlNets that the conds name."""
    found: dict[int, Any] = {}
    for some in conds.values():
        for cond in some:
            control = cond.get("control")
            for patcher in [] if control is None else control.get_models():
                if residency_of(patcher) is not None:
                    found[id(patcher)] = patcher
    return list(found.values())


def joined(patcher: Any, conds: Any) -> bool:
    """Whether other models compute in the model's steps, such as ControlNets, capped or not."""
    from comfy.sampler_helpers import get_additional_models

    found, _ = get_additional_models(conds, patcher.model_dtype())
    return bool(found or patcher.model_patches_models())


def _is_active(cond: Any, timestep: Any) -> bool:
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    now = timestep[0]
    return not ((start is not None and now > start) or (end is not None and now < end))


def _shapes(cond: Any) -> Hashable:
    parts = cond.get("model_conds") or {}
    return tuple(
        sorted((name, str(part.size())) for name, part in parts.items() if part is not None)
    )


def _chain(cond: Any) -> Iterator[Any]:
    control = cond.get("control")
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def _controls(cond: Any, timestep: Any) -> Hashable:
    now = timestep[0]
    rows = []
    for control in _chain(cond):
        limits = getattr(control, "timestep_range", None)
        rests = limits is not None and bool(now > limits[0] or now < limits[1])
        rows.append((type(control).__name__, rests))
    return tuple(rows)


def _stored(patcher: Any) -> int:
    """How many layers are stored in eight bits: decoding one takes memory of its own."""
    return sum(
        issubclass(parts_of(patcher, name, module)[0], Float8Layer)
        for name, module in leaves_of(patcher)
    )


def _patches(patcher: Any) -> Hashable:
    """Which weights have patches of which kind; their values change no memory."""
    return frozenset(
        (key, *(type(patch[1]).__name__ for patch in patches))
        for key, patches in patcher.patches.items()
    )


def _options(model_options: Any) -> Hashable:
    """The names of what other nodes put into the model's options."""
    options = model_options.get("transformer_options", {})
    names = Counter(_names(options.get("patches", {})))
    names.update(_names(options.get("patches_replace", {})))
    override = options.get("optimized_attention_override")
    wrapper = model_options.get("model_function_wrapper")
    functions = [getattr(one, "__qualname__", str(type(one))) for one in (override, wrapper)]
    return (frozenset(names.items()), tuple(functions))


def _names(groups: Any) -> Iterable[str]:
    for name, patches in groups.items():
        for patch in patches:
            yield f"{name} {getattr(patch, '__qualname__', type(patch).__name__)}"
