"""Activation, the cache of compiled cores, and the site folder under another program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lowtide.tests.accelerator import activate, build, current
from lowtide.tests.accelerator.control import parse_bytes

SITE = Path(__file__).resolve().parent / "site"


def python(code, **env):
    """Standard output of a fresh interpreter with the site folder on its path."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("LOWTIDE_SIM")}
    if "LOWTIDE_SIM_CACHE" in os.environ:
        base["LOWTIDE_SIM_CACHE"] = os.environ["LOWTIDE_SIM_CACHE"]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**base, "PYTHONPATH": str(SITE), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_handle_is_one_a_process(accelerator):
    assert current() is accelerator
    assert activate(accelerator.flavour) is accelerator


def test_a_second_flavour_is_refused(accelerator):
    other = {"npu": "cuda", "cuda": "npu"}[accelerator.flavour]
    with pytest.raises(RuntimeError, match="is active in this process"):
        activate(other)
    with pytest.raises(RuntimeError, match="is active in this process"):
        build.load_core(other)


def test_an_unknown_flavour_is_refused():
    with pytest.raises((ValueError, RuntimeError)):
        activate("tpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [("60M", 60 << 20), ("1.5G", 3 << 29), ("4096", 4096), ("2GiB", 2 << 30), (7, 7)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["0", "-1G", 0])
def test_a_capacity_must_be_positive(text):
    with pytest.raises(ValueError, match="positive"):
        parse_bytes(text)


def test_the_cache_key_follows_flavour_and_sources(monkeypatch, tmp_path):
    assert build.cache_key("npu") != build.cache_key("cuda")
    copied = tmp_path / "csrc"
    copied.mkdir()
    for source in build.SOURCES.iterdir():
        (copied / source.name).write_bytes(source.read_bytes())
    before = build.cache_key("npu")
    monkeypatch.setattr(build, "SOURCES", copied)
    assert build.cache_key("npu") == before
    (copied / "arena.cpp").write_text("// changed\n")
    assert build.cache_key("npu") != before


def test_the_site_folder_does_nothing_by_itself():
    code = (
        "import sys, importlib.util as u;"
        "print('torch' in sys.modules, u.find_spec('torch_npu'), len(sys.meta_path))"
    )
    with_site, without = python(code), python(code, PYTHONPATH="")
    assert with_site == without


def test_the_site_folder_gives_another_program_the_device(accelerator):
    code = (
        "import torch\n"
        "if {npu}: import torch_npu\n"
        "module = torch.{name}\n"
        "x = torch.ones(4, device='{name}')\n"
        "import lowtide_sim\n"
        "handle = lowtide_sim.current()\n"
        "print(module.is_available(), module.mem_get_info()[1], module.device_count(),"
        " handle.allocated, x.sum().item())\n"
    ).format(npu=accelerator.flavour == "npu", name=accelerator.flavour)
    out = python(
        code,
        LOWTIDE_SIM=accelerator.flavour,
        LOWTIDE_SIM_CAPACITY="1G",
        LOWTIDE_SIM_DEVICES="2",
    )
    assert out == f"True {1 << 30} 2 512 4.0"
