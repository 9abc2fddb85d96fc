"""A journal says how its work ended."""

import json
from pathlib import Path

import pytest

from cluster.journaled import journaled
from maetrain.train.wishes import Stopped


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (Stopped("by SIGTERM"), "KILLED")],
)
def test_an_end_before_time_is_told_apart(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), journaled(tmp_path / "j", "job", "key"):
        raise error
    assert json.loads((tmp_path / "j").read_text().splitlines()[-1])["status"] == status


def test_a_whole_job_is_finished(tmp_path: Path) -> None:
    with journaled(tmp_path / "j", "job", "key") as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    ops = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [line["op"] for line in ops] == ["open", "metrics", "finish"] and ops[-1]["status"] == "FINISHED"
