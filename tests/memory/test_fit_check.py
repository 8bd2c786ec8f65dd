"""The fit check's table, JSON, refusal and picture, of predictions made by hand."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from lowtide.memory import fit_check
from lowtide.memory.errors import ConfigError, LowtideError
from lowtide.memory.fit_chart import HEIGHT, WIDTH, chart
from lowtide.memory.fit_check import Checked, Row, _refusal
from lowtide.memory.planner.placement import Placement
from lowtide.memory.planner.predict import Turn, predict
from lowtide.memory.planner.work import Work
from lowtide.memory.profile_published import assumed
from lowtide.tests.memory.planner.made import MIB, made

SIZES = {"none": 8, "balanced": 4, "ultra": 1}
BUDGET = 15 * MIB


def checked(limit: int | None = BUDGET, **sizes: int) -> Checked:
    found = Checked(Work(512, 256, steps=3), limit, "the budget")
    for name, weight in (sizes or SIZES).items():
        trace = made(weight=weight * MIB)
        turns = [Turn("model", "denoise", trace, Placement(), calls=3)]
        turns.append(Turn("vae", "decode", made(weight=MIB), Placement()))
        prediction = predict(turns, rates=assumed("NVIDIA GeForce RTX 3060"), workspace_factor=0)
        need = prediction.peak_allocated
        found.rows.append(Row(name, prediction, need, None if limit is None else need <= limit))
    found.judged = found.rows[0]
    return found


def test_the_table_has_a_row_for_each_way_and_a_column_for_each_stage():
    lines = checked().text().splitlines()
    assert lines[0] == "512 x 256, batch 1, 3 steps; the budget: 15.0 MB"
    rows = {line.split()[0]: line for line in lines[2:5]}
    assert set(rows) == set(SIZES)
    assert "30.0 MB" in rows["none"] and rows["none"].endswith("does not fit")
    assert "9.0 MB" in rows["ultra"] and rows["ultra"].endswith(" fits")
    assert re.search(r"\d+\.\d s", rows["none"])
    assert lines[-1].endswith("other packs add to a model are not counted.")
    assert lines[1].split() == ["text", "encoding", "sampling", "VAE", "decoding", "time"]


def test_what_is_not_known_is_not_said_to_fit():
    found = checked(limit=None)
    assert found.text().count("fits?") == 3
    assert found.to_dict()["fits"] is None
    found.unknown.append("the vae cannot be traced")
    assert "Unknown: the vae cannot be traced" in found.text()


def test_the_json_has_bytes():
    found = json.loads(json.dumps(checked().to_dict()))
    assert found["limit_bytes"] == BUDGET and found["fits"] is False
    assert [row["need_bytes"] for row in found["rows"]] == [30 * MIB, 18 * MIB, 9 * MIB]
    assert found["rows"][2]["stages"]["decode"]["peak_allocated_bytes"] == 9 * MIB


def test_the_largest_batch_is_said_where_it_is_known():
    found = checked()
    assert found.to_dict()["largest_batch"] is None and "largest batch" not in found.text()
    found.largest_batch = 0
    assert "The largest batch that is predicted to fit: 0" in found.text()
    assert found.to_dict()["largest_batch"] == 0


@pytest.mark.parametrize(
    ("unknown", "limit", "largest"),
    [([], 1 << 30, 7), (["the vae cannot be traced"], 1 << 30, None), ([], None, None)],
)
def test_the_largest_batch_is_not_said_where_a_part_or_the_limit_is_unknown(
    monkeypatch: pytest.MonkeyPatch, unknown: list[str], limit: int | None, largest: int | None
):
    from lowtide.memory.adapters.comfy import plan_check

    turn = Turn("model", "denoise", made(), Placement())
    subject = SimpleNamespace(turns=lambda config: [turn])
    monkeypatch.setattr(plan_check, "known_parts", lambda work, parts: (subject, unknown))
    monkeypatch.setattr(plan_check, "available", lambda: limit)
    monkeypatch.setattr(plan_check, "costs", dict)
    monkeypatch.setattr(plan_check, "largest_batch", lambda *given: 7)
    found = fit_check._check(None, Work(), 0.0, object(), None, None, None)
    assert found.largest_batch == largest and len(found.rows) == 4


def test_a_refusal_says_what_how_much_and_the_remedy():
    found = checked()
    assert _refusal(found, found.rows[0]) == (
        "this graph is predicted to need 30.0 MB at its peak (sampling), 15.0 MB more than the "
        "budget of 15.0 MB. Level ultra of the Memory Level Selector is predicted to fit"
    )
    none = checked(none=8)
    none.smallest_budget = 20 * MIB
    text = _refusal(none, none.rows[0])
    assert text.endswith("give at least 20.0 MB, or make the image or the batch smaller")


def ink(picture: torch.Tensor, colour: tuple[int, int, int]) -> torch.Tensor:
    """Rows and columns of the pixels of a colour."""
    wanted = torch.tensor(colour) / 255
    return ((picture[0] - wanted).abs().amax(-1) < 1 / 512).nonzero()


def test_the_picture_shows_what_fits_and_the_line_of_the_limit():
    picture = chart(checked())
    assert picture.shape == (1, HEIGHT, WIDTH, 3)
    assert picture.dtype == torch.float32 and picture.min() >= 0 and picture.max() <= 1
    line = ink(picture, (204, 51, 17))[:, 0].float()
    fits, over = ink(picture, (0, 114, 178))[:, 0].float(), ink(picture, (213, 94, 0))[:, 0].float()
    assert len(fits) > 100 and len(over) > 100
    lowest_over = over.max()
    height = line.mode().values  # the line, not its label
    assert lowest_over < height < fits.min(), "what does not fit is above the line"


def test_a_picture_of_nothing_and_of_no_limit():
    assert chart(Checked(Work(), None, "free")).shape == (1, HEIGHT, WIDTH, 3)
    assert len(ink(chart(checked(limit=None)), (110, 110, 110))) > 100


def test_outside_comfyui_it_says_so_and_bad_input_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LowtideError, match="Lowtide Fit Check works on ComfyUI"):
        fit_check.fit_check(None, Work(), 0.0, "report")
    monkeypatch.setattr("lowtide.memory.adapters.comfy.require", lambda _: None)
    with pytest.raises(ConfigError, match="choose one of: report, stop"):
        fit_check.fit_check(None, Work(), 0.0, "ask")
    with pytest.raises(ConfigError, match="a budget of nan GB"):
        fit_check.fit_check(None, Work(), float("nan"), "report")
