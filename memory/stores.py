"""Where Lowtide keeps what it learns: one folder, for the history and the device's profile.

The environment variable ``LOWTIDE_HOME`` names it; else it is under ComfyUI's user directory, or
the platform's folder for user data where there is no ComfyUI. No torch here.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT = "LOWTIDE_HOME"


def folder() -> Path:
    """The folder, which need not exist yet: whoever writes there makes it.

    Raises:
        ImportError: neither is there a ComfyUI nor a variable, and ``platformdirs`` is missing.
    """
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given).expanduser().absolute()
    from .adapters.comfy.paths import user_folder

    host = user_folder("lowtide")
    if host is not None:
        return host
    import platformdirs

    return Path(platformdirs.user_data_dir("lowtide", appauthor=False))
