"""curves.csv keeps every digit, and a garbled one is refused with file and line."""

from pathlib import Path

import pytest

from data_shards.errors import InputError
from maetrain.report.curves import read_curves, write_curves
from maetrain.report.inputs import Curve

HEADER = b"budget,arm,seed,step,dice\n"


def test_curves_come_back_with_every_digit(tmp_path: Path) -> None:
    curves = [
        Curve(budget=4, arm='mae, "large"', seed=1, steps=[0, 7], dice=[1 / 3, 0.1 + 0.2]),
        Curve(budget=1, arm="scratch", seed=0, steps=[3], dice=[0.5]),
    ]
    write_curves(tmp_path / "curves.csv", curves)
    assert read_curves(tmp_path / "curves.csv") == curves[::-1], "sorted by job"
    write_curves(tmp_path / "none.csv", [])
    assert read_curves(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "header"),
        (b"step,dice\n", "header 'step,dice'"),
        (HEADER + b"1,mae,0,5\n", "line 2"),
        (HEADER + b"1,mae,0,5,0.5\n1,mae,0,x,0.5\n", "line 3.*'x'"),
        (HEADER + b"1,mae,0,5,0.5\n1,mae,0,5,0.5\n", "budget 1, arm 'mae', seed 0: .*steps must rise"),
        (HEADER + b"0,mae,0,5,0.5\n", "budget 0"),
        (b"\xff\xfe", "not a readable CSV"),
        (HEADER + b"1,mae,0,5,0.5\n1,mae,0,9,nan\n", "line 3: Dice nan is not 0..1"),
        (HEADER + b"1,mae,0,5,81.5\n", "line 2: Dice 81.5 is not 0..1"),
    ],
)
def test_a_garbled_file_is_refused_in_one_line_that_names_it(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "curves.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        read_curves(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
