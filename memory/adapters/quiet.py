"""Keeps the libraries' own progress bars and remarks out of a command's output."""

from __future__ import annotations

import warnings


def silence_libraries() -> None:
    """From now on diffusers and transformers print errors only. For whole processes of our own."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_diffusers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
