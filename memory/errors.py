"""The errors Lowtide raises on purpose. Each message says what, how much, and the remedy."""

from __future__ import annotations


class LowtideError(Exception):
    """Base of every error Lowtide raises on purpose."""


class ConfigError(LowtideError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class UnknownSettingError(ConfigError, AttributeError):
    """A setting that does not exist; the message names the nearest one that does."""


class BudgetError(ConfigError):
    """A budget that cannot be kept; the message names the smallest one that could."""


class TargetError(LowtideError, TypeError):
    """The object handed in is nothing Lowtide can optimise."""


class PipelineLoadError(LowtideError):
    """A folder that is no diffusers pipeline, or one that is not safe to load."""


class DeviceError(LowtideError, RuntimeError):
    """A device that does not exist, or cannot do what was asked of it."""


class Interrupted(LowtideError):
    """The user stopped the run; memory is back where it was."""
