"""inputs.json comes back as it was written, and a garbled one names its field."""

import math
from pathlib import Path

import pytest

from data_shards.errors import InputError
from maetrain.report.inputs import Curve, PretrainCurve, ReportInputs

from .builders import make_inputs


def test_inputs_come_back_as_they_were_written(tmp_path: Path) -> None:
    inputs = make_inputs()
    inputs.save(tmp_path / "report" / "inputs.json")
    assert ReportInputs.load(tmp_path / "report" / "inputs.json") == inputs


def test_a_diverged_loss_survives_the_file(tmp_path: Path) -> None:
    inputs = make_inputs(pretrain_curve=PretrainCurve(steps=[1, 2], loss=[0.5, math.nan]))
    inputs.save(tmp_path / "inputs.json")
    assert math.isnan(ReportInputs.load(tmp_path / "inputs.json").pretrain_curve.loss[1])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "file"),
        ("{}", "test_subjects"),
        ('{"test_subjects": -1, "pool_volumes": 0, "tolerance_mm": 1}', "test_subjects"),
    ],
)
def test_a_garbled_file_names_what_is_wrong(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=f"inputs.json: {word}"):
        ReportInputs.load(tmp_path / "inputs.json")


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        ReportInputs.load(tmp_path / "inputs.json")


@pytest.mark.parametrize(("steps", "dice", "word"), [([1, 2], [0.5], "pair up"), ([2, 1], [0.5, 0.5], "must rise")])
def test_a_curve_that_does_not_fit_is_refused(steps: list[int], dice: list[float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Curve(budget=1, arm="mae", seed=0, steps=steps, dice=dice)
