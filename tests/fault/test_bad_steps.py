"""Losses that are no numbers and ranks that hang, in groups of two real processes."""

import json
import math
import os
from pathlib import Path

import pytest

from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import newest_committed
from maetrain.train.config import PretrainSetup
from tests.maetrain.small import small_setup

from .driver import Run
from .faulty_train import Fault
from .ranks import Group, curve, losses, numbers, ranks_below, torchrun, trained_on

STEPS = 16
STALL_S = 8  # a start must be shorter


def setup_of(index: ShardIndex, run_dir: Path, **changes: object) -> PretrainSetup:
    return small_setup(index, run_dir, **({"steps": STEPS, "checkpoint_every": 4, "max_skipped_steps": 3} | changes))


@pytest.fixture(scope="module")
def whole(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    setup = setup_of(index, tmp_path_factory.mktemp("whole") / "run")
    with Group(setup, 2) as group:
        group.finish()
    return numbers(setup.run_dir)


def events_of(run_dir: Path | str) -> list[dict]:
    return [json.loads(line) for line in (Path(run_dir) / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.runs if stage == 2 else pytest.mark.faults) for stage in range(4)]
)
def test_a_nan_on_one_rank_skips_the_step_on_both_and_names_what_that_rank_saw(
    stage: int, index: ShardIndex, tmp_path: Path
) -> None:
    setup = setup_of(index, tmp_path / "run", zero_stage=stage)
    with Group(setup, 2, [Fault(at="forward", do="nan", rank=1, step=6)], record=True) as group:
        group.finish()
        assert "step 6 skipped" in group.log() and "skipped" not in group.log(1)
    points = curve(setup.run_dir)
    assert [point.step for point in points if not math.isfinite(point.loss)] == [6]
    assert [point.num_skipped for point in points] == [0] * 5 + [1] * 11
    # two crops a rank: the second rank's are the last two of the step
    (event,) = events_of(setup.run_dir)
    assert (event["kind"], event["step"]) == ("skipped", 6)
    assert event["cases"] == sorted(set(trained_on(tmp_path / "record")[6][2:]))
    # the same as one process that leaves that step out: neither rank moved its weights
    alone = setup_of(index, tmp_path / "alone", zero_stage=stage)
    with Group(alone, 1, [Fault(at="forward", do="nan", rank=0, step=6)], name="alone") as group:
        group.finish()
    assert losses(setup.run_dir) == pytest.approx(losses(alone.run_dir), abs=1e-5, nan_ok=True)


@pytest.mark.runs
def test_nans_that_come_again_after_going_back_stop_both_ranks_with_the_samples_named(
    index: ShardIndex, tmp_path: Path
) -> None:
    setup = setup_of(index, tmp_path / "run")
    with Group(setup, 2, [Fault(at="forward", do="nan", rank=1, step=10, last=STEPS)], record=True) as group:
        assert group.wait() == [2, 2], group.tails()
        log, steps = group.log(), group.steps
    assert log.count("back, and on in another order") == 1
    # up to the third bad step, from the last good checkpoint in another order, and up to the third bad step again
    again = steps.index(12) + 1
    assert steps[:again] == list(range(1, 13)) and steps[again:] == list(range(steps[again], 13))
    assert steps[again] in (5, 9)
    events = events_of(setup.run_dir)
    assert [event["step"] for event in events] == [10, 11, 12] * 2
    last = {case for event in events[3:] for case in event["cases"]}
    (line,) = (line for line in log.splitlines() if line.startswith("maetrain: "))
    assert last and all(case in line for case in last) and "learning_rate" in line and "Traceback" not in log
    assert last != {case for event in events[:3] for case in event["cases"]}
    found = newest_committed(Path(setup.run_dir) / "checkpoints")
    assert found.manifest is not None and found.manifest.step in (4, 8) and not found.skipped


@pytest.mark.faults
@pytest.mark.parametrize("hang", ["sleep", "hold"])
def test_a_rank_that_hangs_ends_with_its_stacks_and_so_does_its_neighbour(
    hang: str, index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    """hold: an endless loop in C that never gives the interpreter's lock back."""
    setup = setup_of(index, tmp_path / "run", stall_timeout_s=STALL_S)
    fault = Fault(at="forward", do=hang, rank=1, step=10)  # type: ignore[arg-type]
    with Group(setup, 2, [fault]) as group:
        codes = group.wait()
        assert codes == [1, 1], group.tails()
    hung, waited = "in strike", "all_reduce"
    stacks = {path.name[:10]: path.read_text() for path in (tmp_path / "run" / "stalls").glob("*.txt")}
    assert hung in stacks["rank-00001"]
    # it was in a collective, and either its own time was up first or the other one's end woke it
    assert waited in stacks.get("rank-00000", waited)
    with Group(setup, 2, [fault]) as group:
        group.finish()
        told = [line for line in group.log().splitlines() if "a rank stalled and was ended" in line]
        assert len(told) == sum(bool(text) for text in stacks.values())
    assert numbers(setup.run_dir) == whole


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("hang", ["hold", "pause"])
def test_torchrun_starts_a_group_again_of_which_a_rank_hung(
    hang: str, index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    """pause: a stopped process (SIGSTOP) has no clock of its own; its neighbour's ends the group.

    torchrun gives the stopped one 30 s to follow a SIGTERM and then kills it.
    """
    setup = setup_of(index, tmp_path / "run", stall_timeout_s=2 * STALL_S)
    fault = Fault(at="forward", do=hang, rank=1, step=10)  # type: ignore[arg-type]
    with Run(torchrun(tmp_path, setup, [fault], restarts=2), tmp_path / "run", {}) as run:
        run.until(lambda: "fault:" in run.log, 100, "the fault")
        first = ranks_below(run.process.pid)
        run.finish(200)
        assert f"fault: {hang} at forward" in run.log and "a rank stalled and was ended" in run.log
    assert not [pid for pid in first.values() if is_alive(pid)]
    assert numbers(setup.run_dir) == whole


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
