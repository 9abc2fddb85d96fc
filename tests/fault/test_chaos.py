"""The rain of kills itself: its plan, its table, and a short one as an example. The long one is run by hand."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .chaos_record import WEIGHTS, KillRecord, draw_kills, read_records, table


def record(number: int, target: str, **changes: object) -> KillRecord:
    usual = {"at": "", "wall_s": 20.0 * number, "committed": 40, "kept": 40, "reached": 50, "recovered_s": 12.0}
    return KillRecord(number=number, target=target, **{**usual, "group_starts": 1, "driver_starts": 0, **changes})


def test_kills_come_as_seldom_and_strike_as_often_as_they_are_meant_to() -> None:
    draws = draw_kills(seed=3, number=20000, mean_s=20, in_training=0.25)
    waits = [draw.wait_s for draw in draws]
    assert max(waits) == 100
    # an exponential time cut at five means
    assert sum(waits) / len(waits) == pytest.approx(20 * (1 - 2.718281828**-5), rel=0.03)
    first = Counter(draw.targets[0] for draw in draws)
    assert {target: round(10 * count / len(draws)) for target, count in first.items()} == WEIGHTS
    assert all(sorted(draw.targets) == sorted(WEIGHTS) and 0 <= draw.which < 1 for draw in draws)
    assert 0.24 < sum(draw.in_training for draw in draws) / len(draws) < 0.26
    assert 0.45 < sum(draw.spares_driver for draw in draws) / len(draws) < 0.55


def test_a_plan_that_is_made_longer_begins_as_before() -> None:
    assert draw_kills(1, 30, 8, 0.5)[:10] == draw_kills(1, 10, 8, 0.5) != draw_kills(2, 10, 8, 0.5)


def test_the_first_kill_waits_for_a_training_where_any_does() -> None:
    for seed in range(20):
        assert draw_kills(seed, 1, 8, 0.1)[0].in_training
        assert not any(draw.in_training for draw in draw_kills(seed, 10, 8, 0))


def test_the_table_counts_by_target() -> None:
    records = [
        record(1, "rank"),  # ten steps behind the checkpoint
        record(2, "rank", kept=45, recovered_s=20.0),  # one was committed still after the kill
        record(3, "rank", reached=None, recovered_s=None, group_starts=0),  # struck in a start, and so did the next
        record(4, "head", reached=30, recovered_s=40.5, group_starts=2, driver_starts=1),
    ]
    assert [row.split(" | ") for row in table(records).splitlines()[2:]] == [
        ["| rank", "3", "2", "2", "0", "8", "10", "16.0", "20.0", "1 |"],
        ["| head", "1", "1", "2", "1", "0", "0", "40.5", "40.5", "0 |"],
        ["| all", "4", "3", "4", "1", "5", "10", "20.0", "40.5", "1 |"],
    ]


def test_records_are_read_again_but_for_half_a_line(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none") == []
    records = [record(1, "rank"), record(2, "node", recovered_s=None)]
    lines = "".join(r.model_dump_json() + "\n" for r in records)
    (tmp_path / "kills.jsonl").write_text(lines + lines[:20])
    assert read_records(tmp_path / "kills.jsonl") == records


@pytest.mark.long
@pytest.mark.timeout(900)
def test_three_kills_do_the_curve_no_harm(tmp_path: Path) -> None:
    words = [
        "--kills=3",
        "--mean-s=8",
        "--in-training=0.5",
        "--steps=300",
        f"--folder={tmp_path / 'run'}",
        f"--write={tmp_path / 'table.md'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.chaos", *words],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    written = (tmp_path / "table.md").read_text()
    assert re.search(r"^\| all \| 3 \| [1-3] \|", written, re.MULTILINE), "one strikes the training"
    assert "**yes**" in written
    assert [r.number for r in read_records(tmp_path / "run" / "kills.jsonl")] == [1, 2, 3]
