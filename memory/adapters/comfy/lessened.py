"""What a node is given, under a configuration that needs less memory: the models in its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ...rescue import Rung
from . import apply
from . import control as controls
from .patchers import is_dynamic
from .residency import residency_of

Policy = Callable[[], str]


def inputs_under(rung: Rung, inputs: dict[str, Any], policy: Policy) -> dict[str, Any] | None:
    """A node's inputs, lists of values by name, with its models under the rung's configuration.

    ``None`` where that changes none of them; the originals stay as they are. A model keeps its own
    cleanup policy, and takes ``policy()`` if it has none.
    """
    if rung.config is None:
        return inputs
    lessened = _Lessened(rung, policy)
    changed = {name: [lessened.value(it) for it in values] for name, values in inputs.items()}
    same = all(
        one is other
        for name, values in inputs.items()
        for one, other in zip(values, changed[name], strict=True)
    )
    return None if same else changed


class _Lessened:
    """Changes values; one model gets one clone, however many values hold it."""

    def __init__(self, rung: Rung, policy: Policy) -> None:
        self._rung = rung
        self._policy = policy
        self._patchers: dict[int, Any] = {}

    def value(self, value: Any) -> Any:
        """A model, text encoder, VAE, guider or conditioning with less; else the value itself."""
        if hasattr(value, "first_stage_model") and hasattr(value, "latent_dim"):
            config = self._config(getattr(value, "patcher", None))
            share = apply.divide(config, model=None, clip=None, vae=value)
            return apply.to_vae(config, share, value, [])
        if self._rung.name == "tile":
            return value
        if hasattr(value, "cond_stage_model") and hasattr(value, "patcher"):
            config = self._config(value.patcher)
            share = apply.divide(config, model=None, clip=value, vae=None)
            return apply.to_clip(config, share, value, [])
        if hasattr(value, "model_patcher") and hasattr(value, "set_conds"):
            twin = copy.copy(value)
            twin.model_patcher = self._model(value.model_patcher)
            twin.model_options = twin.model_patcher.model_options
            return twin
        if hasattr(value, "model_size") and hasattr(value, "is_clone"):
            return self._model(value)
        if hasattr(value, "set_previous_controlnet"):
            return self._control(value)
        return self._conditioning(value)

    def _config(self, patcher: Any) -> Any:
        config = self._rung.config
        assert config is not None
        if not hasattr(patcher, "attachments"):
            return config
        own = residency_of(patcher)
        return config.replace(cleanup=self._policy() if own is None else own.cleanup)

    def _model(self, patcher: Any) -> Any:
        if is_dynamic(patcher):
            return patcher
        config = self._config(patcher)
        share = apply.divide(config, model=patcher, clip=None, vae=None)
        return apply.to_model(config, share, patcher, [])

    def _control(self, control: Any) -> Any:
        """A ControlNet, and those it follows."""
        before = control.previous_controlnet
        chained = None if before is None else self._control(before)
        patcher = controls.patcher_of(control)
        twin = control
        if patcher is not None and not is_dynamic(patcher):
            twin = controls.with_patcher(control, self._capped(control, patcher))
        elif chained is not before:
            twin = control.copy()
        if twin is not control:
            twin.set_previous_controlnet(chained)
        return twin

    def _capped(self, control: Any, patcher: Any) -> Any:
        """Positive and negative conditioning hold copies of one ControlNet."""
        if id(patcher) not in self._patchers:
            config = self._config(patcher)
            share = apply.divide(config, model=None, clip=None, vae=None, control_net=control)
            capped = apply.to_control_net(config, share, control, [])
            self._patchers[id(patcher)] = controls.patcher_of(capped)
        return self._patchers[id(patcher)]

    def _conditioning(self, value: Any) -> Any:
        """Pairs of a tensor and options, of which one may be a ControlNet; else the value."""
        if type(value) is not list or not value:
            return value
        if not all(
            isinstance(it, (list, tuple)) and len(it) == 2 and isinstance(it[1], dict)
            for it in value
        ):
            return value
        if not any(it[1].get("control") is not None for it in value):
            return value
        return [
            [tensor, options]
            if options.get("control") is None
            else [tensor, {**options, "control": self._control(options["control"])}]
            for tensor, options in value
        ]
