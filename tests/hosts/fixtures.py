"""Fixtures of the host tests: one boot per ComfyUI version and device for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .checkpoints import checkpoint, diffusers_folder
from .comfyui import Installation, survey
from .plugin import FULL
from .server import Server

# A name no Python package could have. Not one with spaces: ComfyUI serves no files of such a pack
# (``test_loading`` loads those).
FOLDER = "low-tide.pack-v0.1"
DEVICES = ("cpu", "npu", "cuda")
CAPACITY = "4G"
CHECKPOINT = "random.safetensors"
CHECKPOINT_KL = "random-kl.safetensors"
LORA = "random-lora.safetensors"
PIPELINE = "tiny-sd15"

INSTALLATIONS = survey()[0]
_NONE = [pytest.param(None, marks=pytest.mark.skip(reason="No ComfyUI found"))]


def _devices(found: Installation) -> tuple[str, ...]:
    """Every ComfyUI with the one flavour; the other in the newest, the CPU in the oldest.

    LOWTIDE_TEST_HOSTS=full takes all with all.
    """
    if FULL or len(INSTALLATIONS) == 1:
        return DEVICES
    if found is INSTALLATIONS[-1]:
        return ("npu", "cuda")
    return ("cpu", "npu") if found is INSTALLATIONS[0] else ("npu",)


def _boots() -> list[object]:
    return [
        pytest.param((it, device), id=f"{it.version}-{device}")
        for it in INSTALLATIONS
        for device in _devices(it)
    ]


@pytest.fixture(
    scope="session", params=INSTALLATIONS or _NONE, ids=[it.version for it in INSTALLATIONS] or None
)
def installation(request: pytest.FixtureRequest):
    """One ComfyUI after the other; nothing runs in it."""
    return request.param


@pytest.fixture(scope="session", params=_boots() or _NONE)
def session_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A running ComfyUI with the pack, a random checkpoint, its LoRA and a diffusers folder."""
    found, device = request.param
    base = tmp_path_factory.mktemp(f"comfyui-{found.version}-{device}")
    server = Server(found, device, base, folder=FOLDER, capacity=CAPACITY)
    place_models(server)
    server.start()
    yield server
    server.stop()


def place_models(server: Server) -> None:
    """Links the cached random models into a server's folders."""
    models = server.base / "models"
    made = checkpoint(server.installation, "small")
    links = {
        models / "checkpoints" / CHECKPOINT: made.file,
        models / "checkpoints" / CHECKPOINT_KL: checkpoint(server.installation, "small-kl").file,
        models / "loras" / LORA: made.lora,
        models / "diffusers" / PIPELINE: diffusers_folder(PIPELINE),
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target, target_is_directory=target.is_dir())


@pytest.fixture
def server(session_server: Server) -> Server:
    """The running ComfyUI, with nothing loaded, nothing cached, and its counters at 0."""
    if not session_server.alive:
        pytest.fail(f"ComfyUI died in an earlier test; its log is {session_server.log_path}")
    session_server.free()
    session_server.reset_counters()
    return session_server
