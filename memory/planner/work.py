"""What a run is asked for: sizes that a prediction depends on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError

_MOST_PIXELS = 16384


@dataclass(frozen=True)
class Work:
    """One run.

    Attributes:
        width, height: of the image, in pixels.
        batch: images made at once.
        steps: of denoising.
        guided: whether each step predicts twice, with and without the prompt, in one batch.
        frames: of a video; 1 = an image.
        words: tokens of the prompt; ``None`` = as many as the model's text encoder takes.
    """

    width: int = 1024
    height: int = 1024
    batch: int = 1
    steps: int = 30
    guided: bool = True
    frames: int = 1
    words: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if not 16 <= value <= _MOST_PIXELS:
                raise ConfigError(
                    f"an image {name} of {value} pixels cannot be planned; give 16 to "
                    f"{_MOST_PIXELS}"
                )
        for name in ("batch", "steps", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; give 1 or more")

    @property
    def samples(self) -> int:
        """Samples the denoiser gets at once."""
        return self.batch * (2 if self.guided else 1)

    @property
    def edge(self) -> int:
        """The edge of a square image of this area, in pixels."""
        return math.isqrt(self.width * self.height - 1) + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
