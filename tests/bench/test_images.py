"""SaveImage and PreviewImage of the headless runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lowtide.bench.images import output_nodes
from lowtide.memory.errors import ConfigError
from PIL import Image


def test_every_image_of_a_batch_gets_its_own_file(tmp_path: Path) -> None:
    images = torch.rand(2, 8, 12, 3)
    seen: list[torch.Tensor] = []
    node = output_nodes(tmp_path, seen.append)["SaveImage"]()
    saved = node.save(images, "sub/pic")["ui"]["images"]
    assert [entry["filename"] for entry in saved] == ["pic_00001_.png", "pic_00002_.png"]
    with Image.open(tmp_path / "sub" / "pic_00002_.png") as opened:
        assert opened.size == (12, 8)
        stored = torch.from_numpy(np.asarray(opened).copy())
    assert torch.equal(stored, (images[1] * 255).round().to(torch.uint8))
    assert len(seen) == 1
    assert seen[0] is images


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    node = output_nodes(tmp_path)["PreviewImage"]()
    for number in (1, 2):
        saved = node.save(torch.zeros(1, 8, 8, 3))["ui"]["images"]
        assert saved[0]["filename"] == f"preview_{number:05d}_.png"


def test_a_prefix_cannot_leave_the_folder(tmp_path: Path) -> None:
    node = output_nodes(tmp_path / "out")["SaveImage"]()
    with pytest.raises(ConfigError, match="leads out of"):
        node.save(torch.zeros(1, 8, 8, 3), "../elsewhere")
    assert not (tmp_path / "elsewhere_00001_.png").exists()
