"""Records what a module's call does to memory, on fake tensors of a device that need not exist.

Imports torch; the traces it makes (``planner.trace``) need none.
"""

from .fakes import fake_copy, fake_mode, fake_tensor, on_meta
from .record import record

__all__ = ["fake_copy", "fake_mode", "fake_tensor", "on_meta", "record"]
