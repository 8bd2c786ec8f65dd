"""A pipeline small enough to see through: what diffusers' pipelines look like to the core."""

from __future__ import annotations

import torch
from lowtide.memory.units import MIB

FLOATS = MIB // 4


class Block(torch.nn.Module):
    """Holds ``size_mb`` MB of weights and allocates ``work_mb`` MB while it runs."""

    def __init__(self, size_mb: int, work_mb: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size_mb * FLOATS))
        self.register_buffer("scale", torch.full((1,), 2.0))
        self.work_mb = work_mb

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scratch = torch.zeros(self.work_mb * FLOATS, device=self.weight.device)
        return x * self.scale + self.weight[0] + scratch[0]


class Autoencoder(Block):
    """Works through methods, as diffusers' VAEs do."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)

    def decode(self, x: torch.Tensor, times: int = 1) -> torch.Tensor:
        """Decode ``times`` times."""
        for _ in range(times):
            x = Block.forward(self, x)
        return x


class Scheduler:
    """Keeps a tensor and a list of tensors between steps."""

    def __init__(self) -> None:
        self.order = 1
        self.timesteps: torch.Tensor | None = None
        self.outputs: list[torch.Tensor] = []
        self.pair: tuple[object, ...] = ()


class Pipeline:
    """Text encoder 1 MB, UNet 4 MB, VAE 2 MB; scratch 2, 3 and 8 MB."""

    def __init__(self) -> None:
        self.text_encoder = Block(1, 2)
        self.unet = Block(4, 3)
        self.vae = Autoencoder(2, 8)
        self.scheduler = Scheduler()
        self.tokenizer = None

    @property
    def components(self) -> dict[str, object]:
        names = ("text_encoder", "unet", "vae", "scheduler", "tokenizer")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str) -> Pipeline:
        for component in (self.text_encoder, self.unet, self.vae):
            component.to(device)
        return self

    @torch.no_grad()
    def __call__(self, steps: int = 2) -> torch.Tensor:
        device = self.unet.weight.device
        self.scheduler.timesteps = torch.arange(float(steps), device=device)
        x = self.text_encoder(torch.ones(1, device=device))
        for step in self.scheduler.timesteps:
            x = self.unet(x) + step
        return self.vae.decode(x).cpu()


class Optimizer:
    """What the core knows of a MemoryOptimizer."""

    def __init__(self, pipeline: object | None, device: torch.device) -> None:
        self.pipeline = pipeline
        self.device = device

    def optimize_pipeline(self, pipeline: object) -> object:
        self.pipeline = pipeline
        return pipeline
