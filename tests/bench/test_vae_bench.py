"""The VAE's bench, small: its figures are those the README promises."""

from __future__ import annotations

from typing import Any

import pytest
from lowtide.bench import cli, vae
from lowtide.bench.places import Place
from lowtide.bench.vae import WAYS, bench_vae


def test_exact_strips_are_exact_at_the_peak_of_a_tile(accelerator: Any) -> None:
    place = Place(accelerator.device, accelerator)
    result = bench_vae(
        "small-16",
        place,
        size=384,
        dtypes=["float32", "bfloat16"],
        works=["decode"],
        progress=False,
    )
    rows = {(row.dtype, row.way): row for row in result.rows}
    assert len(rows) == 2 * len(WAYS)
    untiled, blended, exact, kept = (rows["float32", way] for way in WAYS)
    assert max(exact.error, kept.error) <= 1e-5
    assert blended.error is not None and blended.error > 1e-3
    assert exact.peak <= 1.5 * blended.peak and kept.peak <= untiled.peak
    assert 0 < kept.moved < exact.moved
    half, half_exact = (rows["bfloat16", way].error for way in (WAYS[0], WAYS[2]))
    assert half_exact <= 1.25 * half
    told = result.text()
    assert "Truth of decode: the untiled result in float32 on the CPU." in told
    assert "| decode float32 exact " in told


def test_where_the_untiled_way_does_not_fit_it_is_compared_in_bands(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "WAYS", WAYS[:1])
    place = Place(accelerator.device, accelerator)
    asked: dict[str, Any] = {"size": 320, "dtypes": ["bfloat16"], "works": ["encode"]}
    plain = bench_vae("small", place, **asked, progress=False).rows[0]
    monkeypatch.setattr(vae, "_ram", lambda: 0)
    result = bench_vae("small", place, **asked, progress=False)
    row = result.rows[0]
    assert plain.peak is not None and row.peak is None and row.moved is None
    assert row.error == pytest.approx(plain.error, rel=0.1)
    assert "in bands of rows" in row.note and "in bands of rows" in result.truths["encode"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vae", "huge", "--size", "512"], "no VAE is called 'huge'; choose small,"),
        (["--vae", "small", "--size", "256"], "a multiple of 64 from 320"),
        (["--vae", "small", "--works", "paint"], "give decode,encode"),
    ],
)
def test_what_cannot_be_measured_is_explained(
    accelerator: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--simulate", accelerator.flavour, *arguments]) == 1
    assert message in capsys.readouterr().err
