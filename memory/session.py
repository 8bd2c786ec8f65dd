"""The order of an optimisation of ComfyUI's own models: read this first.

``choose`` turns the selector's widgets into a configuration, ``adjust`` changes single settings
of it, ``optimize_native`` divides its budget, applies it to clones and reports; ``monitor``
reads and ``force_cleanup`` gives back.
Nothing here knows ComfyUI: what does is in ``adapters/comfy``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import override, selection
from .adjust import adjust, check_config
from .automatic import resolve_level
from .errors import ConfigError
from .levels import SELECTOR, MemoryOptimizationConfig, selected
from .rescue import CHOICES
from .settings import ATTENTION_KINDS

if TYPE_CHECKING:
    from .device import DeviceSnapshot
    from .report import OptimizationReport

logger = logging.getLogger("lowtide")

__all__ = [
    "ATTENTION_KINDS",
    "CLEANUP_TARGETS",
    "adjust",
    "begin_to_follow",
    "choose",
    "detection_fingerprint",
    "force_cleanup",
    "level_names",
    "monitor",
    "open_to_the_browser",
    "optimize_native",
]

_RESCUES = {
    "on": "a node that is out of memory runs again with less",
    "off": "a node that is out of memory fails",
    "ask": "when a node is out of memory, the browser asks whether it may run again with less",
}
CLEANUP_TARGETS = ("vram", "ram", "both")


def choose(
    level: str, budget_gb: float, cleanup: str, rescue: str = "on"
) -> tuple[MemoryOptimizationConfig, str]:
    """The configuration of a level, a budget in GB (0 = none) and a cleanup policy, and why.

    What the overlay has set for this run takes the place of level and budget.
    ``rescue`` (on, off, ask) is no part of it: the graph's running prompt is asked for it.

    Raises:
        ConfigError: an unknown level or policy, or a budget that is no amount.
        BudgetError: a budget larger than the device.
    """
    if rescue not in CHOICES:
        raise ConfigError(f"unknown rescue {rescue!r}; choose one of: {', '.join(CHOICES)}")
    level, budget_gb, instead = override.instead_of(level, budget_gb)
    selected(level)
    found = _detect()
    config = selection.config_of(level, budget_gb, cleanup, found)
    said = [
        selection.describe(config, found),
        f"Rescue: {_RESCUES[rescue]}",
        *instead,
        *_device_notes(),
    ]
    return config, "\n".join(said)


def level_names() -> list[str]:
    """What the Memory Level Selector offers."""
    return list(SELECTOR)


def detection_fingerprint(level: str) -> str:
    """Changes when the answer of ``choose`` could: the device, its size, the level they give.

    Free memory is left out on purpose: it changes with every run, and the level does not follow
    it. An override from the overlay is part of it. Never raises, for ComfyUI calls it before the
    node runs.
    """
    forced = override.in_force()
    instead = f" {forced.text()}" if forced else ""
    try:
        found = _detect()
        asked = selected(forced.level or level)
        chosen, _, cpu_mode = resolve_level(asked, found.total, unified=found.unified)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}{instead}"
    return f"{found.device} {found.name} {found.total} {chosen.value} {cpu_mode}{instead}"


@dataclass(frozen=True)
class NativeResult:
    """Clones with the configuration applied, and what was done to them."""

    model: Any
    clip: Any
    vae: Any
    report: OptimizationReport
    control_net: Any = None


def plan_fingerprint(node_id: str | None) -> str:
    """Changes when Optimize Pipeline, the node ``node_id``, would choose another level now."""
    from .adapters import comfy

    if not comfy.present():
        return ""
    from .adapters.comfy import plan_choice

    return plan_choice.fingerprint(node_id)


def optimize_native(
    config: MemoryOptimizationConfig,
    *,
    model: Any = None,
    clip: Any = None,
    vae: Any = None,
    control_net: Any = None,
    node_id: str | None = None,
) -> NativeResult:
    """Apply ``config`` to clones of ComfyUI's MODEL, CLIP, VAE and CONTROL_NET.

    What is ``None`` stays so. ``node_id`` is the node that asks, whose place in the graph tells
    what the models will be given.

    Raises:
        LowtideError: this process is no ComfyUI.
        TargetError: an input that is no configuration, model, text encoder, VAE or ControlNet.
        BudgetError: a budget under what the weights need even when all are streamed.
    """
    from .adapters import comfy
    from .report import OptimizationReport

    comfy.require("Lowtide Optimize Pipeline")
    config = check_config(config)
    from .adapters.comfy import apply, compatibility, executor, plan_choice
    from .backend import device_of

    device = device_of(comfy.device())
    apply.check_parts(model=model, clip=clip, vae=vae, control_net=control_net)
    chosen = plan_choice.choose(
        config, model=model, clip=clip, vae=vae, device=device, node=node_id
    )
    config = chosen.config
    executor.follow_policy(config)
    share = apply.divide(config, model=model, clip=clip, vae=vae, control_net=control_net)
    notes = [*chosen.notes, *compatibility.notes(compatibility.parts_of(model, clip, vae))]
    entries: list[Any] = []
    model = apply.to_model(config, share, model, entries)
    control_net = apply.to_control_net(config, share, control_net, entries)
    clip = apply.to_clip(config, share, clip, entries)
    vae = apply.to_vae(config, share, vae, entries)
    apply.account_for_the_rest(config, entries)
    report = OptimizationReport(config.level, str(device), entries, notes, chosen.stages)
    return NativeResult(model, clip, vae, report, control_net)


def open_to_the_browser() -> None:
    """Let the browser ask, and answer Lowtide's questions; nothing outside ComfyUI's server.

    For the pack's nodes to call when ComfyUI loads them, before the server starts. Never raises.
    """
    from .adapters import comfy

    if not comfy.present():
        return
    from .adapters.comfy.overlay import routes

    try:
        routes.open_routes()
    except Exception:  # without them a question is a no, and all but the overlay works
        logger.exception("Lowtide's overlay is not served here")


def begin_to_follow() -> None:
    """Follow ComfyUI's prompts from now on; nothing outside ComfyUI.

    For nodes to call before the prompt that holds them begins. Never raises.
    """
    from .adapters import comfy

    if comfy.present():
        from .adapters.comfy import executor

        executor.install_quietly()


def monitor(node_id: str | None = None) -> tuple[str, dict[str, Any]]:
    """What device and host hold now: text, and figures in bytes (``None`` where unknown).

    Inside ComfyUI the node ``node_id`` is read again on every later run that finds it cached.
    """
    from .adapters import comfy
    from .figures import read

    if comfy.present() and node_id is not None:
        from .adapters.comfy import executor

        executor.revisit(node_id, "LowtideVRAMMonitor", reread)
    return read()


def reread(_inputs: dict[str, Any]) -> dict[str, list[Any]]:
    """What the monitor shows, for a run that finds the node cached."""
    return {"text": [monitor()[0]]}


def force_cleanup(
    target: str, node_id: str | None = None, keep: str = ""
) -> tuple[str, dict[str, Any]]:
    """Give back memory now, by ``target`` (vram, ram, both); its receipt as text and JSON.

    Models named in ``keep``, between commas, stay where they are. Inside ComfyUI the cleanup is
    repeated on every later run that finds ``node_id`` cached.

    Raises:
        ConfigError: an unknown target.
    """
    if target not in CLEANUP_TARGETS:
        raise ConfigError(f"unknown target {target!r}; choose one of: {', '.join(CLEANUP_TARGETS)}")
    from .adapters import comfy

    if comfy.present() and node_id is not None:
        from .adapters.comfy import executor

        executor.revisit(node_id, "LowtideForceCleanup", repeat_cleanup)
    return _clean_up(target, node_id, keep)


def repeat_cleanup(inputs: dict[str, Any]) -> dict[str, list[Any]]:
    """The cleanup of a cached node, with the inputs its graph has now; what the node shows."""
    target, keep = inputs.get("target", "vram"), inputs.get("keep", "")
    target, keep = (
        target if target in CLEANUP_TARGETS else "vram",
        keep if isinstance(keep, str) else "",
    )
    text, receipt = _clean_up(target, inputs.get("unique_id"), keep)
    return {"text": [text], "receipt": [receipt]}


def _clean_up(target: str, node_id: str | None, keep: str) -> tuple[str, dict[str, Any]]:
    from .adapters import comfy
    from .teardown import teardown

    names = [name.strip() for name in keep.split(",") if name.strip()]
    receipt = teardown(vram=target != "ram", ram=target != "vram", keep=names)
    if comfy.present():
        from .adapters.comfy.overlay import ledger

        ledger.add(receipt, "a node" if node_id is None else f"node {node_id}")
    return receipt.text(), receipt.to_dict()


def _detect() -> DeviceSnapshot:
    from .adapters import comfy
    from .device import snapshot

    return snapshot(comfy.device()).counting(comfy.outside_torch())


def _device_notes() -> list[str]:
    """What ComfyUI's start flags do to the device, a line each; nothing outside ComfyUI."""
    from .adapters import comfy

    if not comfy.present():
        return []
    from .adapters.comfy import start_flags

    return [f"Note: {note}" for note in start_flags.device_notes()]
