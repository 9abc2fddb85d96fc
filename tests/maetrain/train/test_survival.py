"""What a run does when losses, storage or people interfere: one process, faults planted from outside.

The same with several real processes is in tests/fault.
"""

import errno
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint import writer
from maetrain.checkpoint.commit import newest_committed, step_of
from maetrain.models.mae import MaeOutput
from maetrain.train import pretrain as loop
from maetrain.train import resume, saving
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve, StepInfo
from maetrain.train.engine import Engine
from maetrain.train.group import RankInfo
from maetrain.train.wishes import Stopped, Wishes

from ..small import small_setup

pytestmark = pytest.mark.runs


def losses_of(run_dir: Path | str) -> list[float]:
    curve = Curve.load(Path(run_dir) / "curve.jsonl")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    return [point.loss for point in curve]


def steps_kept(run_dir: Path) -> list[int]:
    return sorted(step_of(folder) for folder in (run_dir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(who: RankInfo, small_index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> PretrainSetup:
    """Twelve steps that nothing disturbed."""
    setup = small_setup(small_index, tmp_path_factory.mktemp("whole"), steps=12)
    loop.pretrain(setup, who)
    return setup


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is committed before the next step: how fast the disk is decides nothing."""
    begin = saving.Saver.begin

    def begin_and_wait(saver: saving.Saver, *state: object) -> None:
        begin(saver, *state)  # type: ignore[arg-type]
        saver.settle(lambda: None)

    monkeypatch.setattr(saving.Saver, "begin", begin_and_wait)


class Poison:
    """Makes the loss of the given micro-batches NaN, counted from 0 over the life of the object."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, torch.Tensor], bool]) -> None:
        self.count, forward = 0, Engine.__call__

        def poisoned(engine: Engine, volume: torch.Tensor, seeds: torch.Tensor) -> MaeOutput:
            output = forward(engine, volume, seeds)
            is_nan = is_bad(self.count, seeds)
            self.count += 1
            return output._replace(loss=output.loss * math.nan) if is_nan else output

        monkeypatch.setattr(Engine, "__call__", poisoned)


def test_a_step_with_a_nan_is_skipped_counted_and_named(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, lambda count, _: count == 9)  # two micro-batches a step: the second of step 5
    heard: list[str] = []
    setup = small_setup(small_index, tmp_path, steps=8, checkpoint_every=4)
    loop.pretrain(setup, who, say=heard.append)
    curve = Curve.load(tmp_path / "curve.jsonl")
    assert [point.step for point in curve if not math.isfinite(point.loss)] == [5]
    assert [point.num_skipped for point in curve] == [0, 0, 0, 0, 1, 1, 1, 1]
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["step"], event["loss"]) == ("skipped", 5, None) and len(event["cases"]) <= 2
    assert any("step 5 skipped" in line and event["cases"][0] in line for line in heard)
    state = newest_committed(tmp_path / "checkpoints").manifest.state  # type: ignore[union-attr]
    assert (state["num_skipped"], state["updates"], state["order"]) == (1, 7, 0)


@pytest.mark.usefixtures("at_once")
def test_a_streak_of_nans_goes_back_once_and_on_in_another_order(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: PretrainSetup
) -> None:
    Poison(monkeypatch, lambda count, _: 12 <= count < 18)  # steps 7, 8, 9 at the first time
    heard: list[str] = []
    setup = small_setup(small_index, tmp_path, steps=12, max_skipped_steps=3)
    loop.pretrain(setup, who, say=heard.append)
    losses, undisturbed = losses_of(tmp_path), losses_of(whole.run_dir)
    assert [line for line in heard if "back" in line] == ["step 9: 3 skipped in a row; back, and on in another order"]
    assert any(line.startswith("resumed at step 6 ") for line in heard)
    assert losses[:6] == undisturbed[:6] and losses[6] != undisturbed[6]
    assert all(map(math.isfinite, losses)) and len(losses) == 12
    state = newest_committed(tmp_path / "checkpoints").manifest.state  # type: ignore[union-attr]
    assert (state["order"], state["went_back_at"], state["num_skipped"], state["updates"]) == (1, None, 3, 12)


@pytest.mark.usefixtures("at_once")
def test_nans_that_come_again_stop_the_run_with_the_samples_named(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, lambda count, _: count >= 12)
    setup = small_setup(small_index, tmp_path, steps=12, max_skipped_steps=2)
    with pytest.raises(InputError) as error:
        loop.pretrain(setup, who)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    last = {case for event in events[-2:] for case in event["cases"]}
    assert all(case in str(error.value) for case in last) and "Step 6 is the last good checkpoint" in str(error.value)
    assert "learning_rate" in str(error.value)
    assert newest_committed(tmp_path / "checkpoints").manifest.step == 6  # type: ignore[union-attr]


def test_a_wish_for_a_checkpoint_is_met_and_moves_nothing(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    wishes, commits = Wishes(), list[int]()

    def wish(info: StepInfo) -> None:
        if info.step == 4:
            wishes.save = "a node goes away"

    setup = small_setup(small_index, tmp_path, steps=12, checkpoint_every=100)
    loop.pretrain(setup, who, wish, on_commit=lambda step, _: commits.append(step), wishes=wishes)
    assert commits == [0, 5, 12] and losses_of(tmp_path) == losses_of(whole.run_dir)


def test_a_wished_for_stop_loses_no_step(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    wishes = Wishes()

    def wish(info: StepInfo) -> None:
        if info.step == 4:
            wishes.stop = "SIGTERM"

    setup = small_setup(small_index, tmp_path, steps=12, checkpoint_every=100)
    with pytest.raises(Stopped, match="stopped at step 5"):
        loop.pretrain(setup, who, wish, wishes=wishes)
    steps: list[int] = []
    loop.pretrain(setup, who, lambda info: steps.append(info.step))
    assert steps == list(range(6, 13)) and losses_of(tmp_path) == losses_of(whole.run_dir)


def test_each_committed_step_is_told_once_over_restarts(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    told: list[tuple[int, list[int]]] = []

    def on_commit(step: int, points: Sequence[StepInfo]) -> None:
        told.append((step, [point.step for point in points]))

    class Crash(Exception):
        pass

    def crash(info: StepInfo) -> None:
        if info.step == 8:
            raise Crash

    setup = small_setup(small_index, tmp_path, steps=12, checkpoint_every=3, log_every=1)
    with pytest.raises(Crash):
        loop.pretrain(setup, who, crash, on_commit=on_commit)
    first = told.copy()
    told.clear()
    loop.pretrain(setup, who, on_commit=on_commit)
    assert [step for step, _ in first][:2] == [0, 3] and [point for _, points in first for point in points] in (
        [1, 2, 3], [1, 2, 3, 4, 5, 6],
    )  # fmt: skip
    resumed = told[0][0]
    assert told[0][1] == list(range(1, resumed + 1)), "a start tells all that was committed before"
    assert [point for _, points in told for point in points] == list(range(1, 13))


class FullDisk:
    """write_rank_file fails as a full disk does, at the given calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_full: Callable[[int], bool]) -> None:
        self.calls, write = 0, saving.write_rank_file

        def full(folder: Path, rank: int, tensors: dict) -> object:
            self.calls += 1
            if is_full(self.calls - 1):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"rank-{rank:05d}.safetensors").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(folder, rank, tensors)

        monkeypatch.setattr(saving, "write_rank_file", full)
        monkeypatch.setattr(writer, "_FIRST_PAUSE_S", 0.01)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, lambda call: 1 <= call < 4)
    setup = small_setup(small_index, tmp_path, steps=12)
    heard: list[str] = []
    loop.pretrain(setup, who, say=heard.append)
    assert losses_of(tmp_path) == losses_of(whole.run_dir) and steps_kept(tmp_path)[-1] == 12
    (waits,) = (line for line in heard if "waits for its storage: rank 0: " in line)
    assert "No space left" in waits, "once, though it was tried three times"


class Unsteady:
    """A function that raises an OSError when it is called first, and works from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls, self.works = 0, getattr(resume, name)
        monkeypatch.setattr(resume, name, self)

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        if self.calls == 1:
            raise OSError("no answer")
        return self.works(*arguments)


def test_a_start_asks_its_storage_again(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_FIRST_PAUSE_S", 0.01)
    names = ("text_of", "is_there", "write_text", "newest_committed", "checkpoint_of")
    questions = [Unsteady(monkeypatch, name) for name in names]
    setup = small_setup(small_index, tmp_path, steps=14).model_copy(update={"fork": whole.run_dir})
    loop.pretrain(setup, who)
    assert all(question.calls > 1 for question in questions) and len(losses_of(tmp_path)) == 14


def test_what_a_killed_start_left_of_a_curve_half_written_goes_with_the_next_checkpoint(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path
) -> None:
    for name in (".tmp-curve.jsonl-0123abcd", ".tmp-events.jsonl-0123abcd"):
        (tmp_path / name).write_text("{")
    loop.pretrain(small_setup(small_index, tmp_path), who)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("content", [b"{", b"\xff{}"])
def test_garbled_settings_of_a_run_are_named(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match="run.json: garbled"):
        loop.pretrain(small_setup(small_index, tmp_path), who)


def test_a_checkpoint_that_fails_is_told_and_the_next_one_succeeds(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, lambda call: call == 1)
    heard: list[str] = []
    setup = small_setup(small_index, tmp_path, steps=12, checkpoint_every=4, storage_timeout_s=0.005)
    loop.pretrain(setup, who, say=heard.append)
    assert any("checkpoint of step 4 failed: rank 0" in line and "No space left" in line for line in heard)
    assert losses_of(tmp_path) == losses_of(whole.run_dir) and steps_kept(tmp_path)[-1] == 12 and disk.calls >= 3


def test_a_disk_that_stays_full_stops_the_run_and_leaves_the_last_checkpoint_whole(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = small_setup(
        small_index, tmp_path, steps=12, checkpoint_every=3, storage_timeout_s=0.005, max_failed_checkpoints=2
    )
    with monkeypatch.context() as patched:
        FullDisk(patched, lambda call: call >= 2)
        with pytest.raises(
            InputError, match="2 checkpoints in a row could not be stored, step 3 is safe.*No space left"
        ):
            loop.pretrain(setup, who)
    found = newest_committed(tmp_path / "checkpoints")
    assert found.manifest is not None and found.manifest.step == 3 and found.skipped == ()
    loop.pretrain(setup, who)
    assert losses_of(tmp_path) == losses_of(whole.run_dir)


def test_a_first_checkpoint_that_can_not_be_written_is_said_before_any_step(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, lambda _: True)
    steps: list[int] = []
    setup = small_setup(small_index, tmp_path, storage_timeout_s=0.005)
    with pytest.raises(InputError, match="none is committed"):
        loop.pretrain(setup, who, lambda info: steps.append(info.step))
    assert steps == []


def test_a_fork_begins_with_the_other_runs_state_and_says_where_it_comes_from(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = small_setup(small_index, tmp_path, steps=16, learning_rate=1e-5, checkpoint_every=2, log_every=1)
    forked = slower.model_copy(update={"fork": whole.run_dir})
    steps, told = list[int](), list[int]()

    def on_commit(_: int, points: Sequence[StepInfo]) -> None:
        told.extend(point.step for point in points)

    monkeypatch.setattr(resume, "SPIKE_WINDOW", 5)  # of the other run's curve no rank holds more as points
    loop.pretrain(forked, who, lambda info: steps.append(info.step), on_commit=on_commit)
    assert told == list(range(1, 17)), "the other run's points are told, too"
    assert steps == [13, 14, 15, 16] and losses_of(tmp_path)[:12] == losses_of(whole.run_dir)
    state = newest_committed(tmp_path / "checkpoints").manifest.state  # type: ignore[union-attr]
    assert "at step 12" in state["forked_from"] and state["updates"] == 16
    loop.pretrain(forked, who, lambda info: steps.append(info.step))
    assert steps == [13, 14, 15, 16], "started again it goes on with itself, not with the other run"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 12}, "pretrain.steps above that"),
        ({"steps": 20, "mae": {"decoder_dim": 24}}, "mae.decoder_dim: 12 -> 24"),
    ],
    ids=["nothing left to do", "another network"],
)
def test_a_fork_that_can_not_go_on_is_refused(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, changes: dict, said: str
) -> None:
    setup = small_setup(small_index, tmp_path, **{k: v for k, v in changes.items() if k != "mae"}, seed=9)
    if "mae" in changes:
        mae = setup.pretrain.mae.model_copy(update=changes["mae"])
        setup = setup.model_copy(update={"pretrain": setup.pretrain.model_copy(update={"mae": mae})})
    with pytest.raises(InputError, match=said):
        loop.pretrain(setup.model_copy(update={"fork": whole.run_dir}), who)


def test_a_spike_is_noted_with_its_cases(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, forward = 0, Engine.__call__

    def spiked(engine: Engine, volume: torch.Tensor, seeds: torch.Tensor) -> MaeOutput:
        nonlocal count
        output = forward(engine, volume, seeds)
        count += 1
        return output._replace(loss=output.loss * (50 if count == 60 else 1))

    monkeypatch.setattr(Engine, "__call__", spiked)
    setup = small_setup(small_index, tmp_path, steps=32, checkpoint_every=32, spike_mads=8)
    loop.pretrain(setup, who)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["step"]) for event in events] == [("spike", 30)] and 1 <= len(events[0]["cases"]) <= 2


def test_a_profile_is_written_where_it_is_asked_for(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    setup = small_setup(small_index, tmp_path, steps=12).model_copy(update={"profile": True})
    loop.pretrain(setup, who)
    (trace,) = (tmp_path / "profile").glob("rank-00000-*.json")
    assert "traceEvents" in json.loads(trace.read_text())
    assert losses_of(tmp_path) == losses_of(whole.run_dir)
