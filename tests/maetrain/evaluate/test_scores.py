"""scores.csv keeps every digit, and a garbled one is refused with file and line."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.errors import InputError
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.scores import ScoreRow, check_rows, read_scores, write_scores

from ..report.builders import make_rows, row

HEADER = "budget,arm,seed,case,subject,class,dice,hd95_mm,surface_dice"


def test_scores_come_back_with_every_digit(tmp_path: Path) -> None:
    odd = {"case": 'a "quoted", case', "subject": "anna", "class_name": "ö", "hd95_mm": 1e-9, "surface_dice": 0.1 + 0.2}
    rows = make_rows(num_subjects=3)
    rows += [replace(r, dice=1 / (3 + i), **odd) for i, r in enumerate({r.key[:3]: r for r in rows}.values())]
    write_scores(tmp_path / "scores.csv", rows)
    assert set(read_scores(tmp_path / "scores.csv")) == set(rows)
    assert (tmp_path / "scores.csv").read_text().splitlines()[0] == HEADER


def test_the_order_of_jobs_and_cases_does_not_change_the_file(tmp_path: Path) -> None:
    rows = make_rows(num_subjects=3)
    write_scores(tmp_path / "a.csv", rows)
    write_scores(tmp_path / "b.csv", sorted(rows, key=lambda r: (r.case, -r.seed, r.arm)))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_classes_keep_their_order_in_the_file(tmp_path: Path) -> None:
    rows = [row(1, "mae", 0, "c", "p", name, 0.5) for name in ("front", "back", "middle")]
    write_scores(tmp_path / "scores.csv", rows)
    assert [r.class_name for r in read_scores(tmp_path / "scores.csv")] == ["front", "back", "middle"]


def test_a_case_score_becomes_a_row_of_its_job() -> None:
    score = CaseScore("case_1", "anna", "front", 0.9, 1.5, 0.8)
    assert ScoreRow.of(score, 4, "mae", 7) == ScoreRow(4, "mae", 7, "case_1", "anna", "front", 0.9, 1.5, 0.8)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "header"),
        (b"a,b,c\n1,2,3\n", "header"),
        (HEADER.encode() + b"\n", "holds no scores"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,0.5,1.0\n", "line 2: 8 fields"),  # cut off
        (HEADER.encode() + b"\n1,mae,0,c,p,front,0.5,1.0,0.5\nx,mae,0,c,p,back,0.5,1.0,0.5\n", "line 3"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,high,1.0,0.5\n", "line 2.*'high'"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,1.5,1.0,0.5\n", "line 2: dice 1.5"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,nan,1.0,0.5\n", "dice nan"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,0.5,inf,0.5\n", "hd95_mm inf"),
        (HEADER.encode() + b"\n0,mae,0,c,p,front,0.5,1.0,0.5\n", "budget 0"),
        (HEADER.encode() + b"\n1,,0,c,p,front,0.5,1.0,0.5\n", "empty arm"),
        (HEADER.encode() + b"\n1,mae ,0,c,p,front,0.5,1.0,0.5\n", "arm 'mae ' .*blanks around it"),
        (HEADER.encode() + b"\n" + 2 * b"1,mae,0,c,p,front,0.5,1.0,0.5\n", "occurs twice"),
        (HEADER.encode() + b"\n1,mae,0,c,p,front,0.5,1.0,0.5\n1,mae,1,c,q,front,0.5,1.0,0.5\n", "two persons"),
        (HEADER.encode() + b'\n1,mae,0,"c,p,front,0.5,1.0,0.5\n', "not a readable CSV"),
        (b"\xff\xfe\x00\x01", "not a readable CSV"),
    ],
)
def test_a_garbled_file_is_refused_in_one_line_that_names_it(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    path, rows = tmp_path / "scores.csv", [row(1, "mae", 0, "a", "a", "front", 0.5)]
    write_scores(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_scores(path) == rows


FULL = [
    row(budget, arm, seed, case, case, name, 0.5)
    for budget in (1, 4)
    for arm in ("scratch", "mae")
    for seed in (0, 1)
    for case in ("a", "b")
    for name in ("front", "back")
]


@pytest.mark.parametrize(
    ("job", "case", "name", "other"),
    [
        ((4, "mae", 1), "b", "back", (1, "scratch", 0)),
        ((1, "scratch", 0), "a", "front", (1, "scratch", 1)),  # the first job is the one that lacks it
        ((4, "scratch", 0), "a", None, (1, "scratch", 0)),  # a whole case
    ],
)
def test_runs_with_different_test_sets_are_refused_naming_both_and_a_case(
    tmp_path: Path, job: tuple, case: str, name: str | None, other: tuple
) -> None:
    rows = [r for r in FULL if not (r.key[:3] == job and r.case == case and name in (None, r.class_name))]
    lines = [f"{r.budget},{r.arm},{r.seed},{r.case},{r.subject},{r.class_name},0.5,1.0,0.5" for r in rows]
    (tmp_path / "scores.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    for refuse in (lambda: write_scores(tmp_path / "new.csv", rows), lambda: read_scores(tmp_path / "scores.csv")):
        with pytest.raises(InputError, match="different test sets are mixed") as caught:
            refuse()
        has, lacks = (f"budget {b}, arm {a!r}, seed {s}" for b, a, s in (other, job))
        said = f"case {case!r}, class {name or 'back'!r} is scored for {has} and not for {lacks}"
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new.csv").exists()


def test_a_whole_job_may_be_missing() -> None:
    check_rows([r for r in FULL if r.key[:3] != (4, "mae", 1)])


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_scores(tmp_path / "scores.csv")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    good = [row(1, "mae", 0, "c", "p", "front", 0.5)]
    write_scores(tmp_path / "scores.csv", good)
    with pytest.raises(InputError, match="occurs twice"):
        write_scores(tmp_path / "scores.csv", good + good)
    assert read_scores(tmp_path / "scores.csv") == good
