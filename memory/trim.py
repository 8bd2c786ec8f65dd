"""Gives memory the C runtime keeps for reuse back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys


def trim_host() -> str | None:
    """Trim the process's heap and name the call used; ``None`` where there is none.

    glibc's ``malloc_trim``, Windows' ``_heapmin``, macOS' ``malloc_zone_pressure_relief``. It
    takes some milliseconds per GB of heap. Live memory, mapped files and pinned pages stay.
    """
    if sys.platform == "win32":
        ctypes.CDLL("ucrtbase")._heapmin()
        return "_heapmin"
    name = "malloc_zone_pressure_relief" if sys.platform == "darwin" else "malloc_trim"
    # musl and others have no such call: nothing to trim with.
    call = getattr(ctypes.CDLL(None), name, None)
    if call is None:
        return None
    if sys.platform == "darwin":
        call.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        call.restype = ctypes.c_size_t
        call(None, 0)
    else:
        call.argtypes = [ctypes.c_size_t]
        call(0)
    return name
