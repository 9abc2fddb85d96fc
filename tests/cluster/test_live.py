"""What the driver says of a sweep while it runs."""

import io

import pytest
from rich.console import Console

from cluster import live
from cluster.live import SweepBoard
from cluster.sweep import rates_of
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult


def job(seed: int, arm: str = "mae") -> FinetuneJob:
    return FinetuneJob(budget=4, arm=arm, seed=seed, subjects=("a",))


def trial(rate: float) -> FinetuneJob:
    return FinetuneJob(budget=4, arm="mae", seed=0, subjects=("a",), learning_rate=rate, is_trial=True)


def result(of: FinetuneJob, dice: float | None, validation: float = 0.0) -> JobResult:
    return JobResult(
        job=of, monitor_steps=[1], monitor_dice=[0.5], validation_dice=[validation], test_dice=dice,
        learning_rate=1e-3, steps=1, kept_step=1, training_s=1.0, scoring_s=1.0, seconds=2.0,
    )  # fmt: skip


JOBS = [job(seed) for seed in range(6)]


def board(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> SweepBoard:
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live, "say", lambda _: None)
    return SweepBoard("jobs", JOBS, {JOBS[0]: result(JOBS[0], 0.7)})


def test_every_job_is_counted_once_in_the_state_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    shown = board(monkeypatch, clock)
    assert shown.line() == "5 waiting, 0 running, 1 done, 0 failed, best Dice 0.700 (budget-004-mae-seed-0)"
    for running in JOBS[1:4]:
        shown.running(running)
    shown.done(JOBS[1], result(JOBS[1], 0.9))
    shown.failed(JOBS[2], "no luck")
    shown.again(JOBS[3], "its worker died")
    clock[0] = 120.0
    assert shown.line() == (
        "3 waiting, 0 running, 2 done, 1 failed, best Dice 0.900 (budget-004-mae-seed-1), 0:30 left"
    )  # two ended in 20 s here, kept ones don't count: 10 s each for the three that wait
    assert shown.retries == 1


def test_trials_are_ranked_by_their_validation_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = board(monkeypatch, [0.0])
    shown.results = {job(0): result(job(0), None, 0.3), job(1): result(job(1), None, 0.6)}
    assert shown.best is not None and shown.best.job == job(1)


def test_a_trial_counts_by_the_weights_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """With keep=best the last measurement is not theirs."""
    shown = board(monkeypatch, [0.0])
    early = {"monitor_steps": [1, 2], "kept_step": 1, "validation_dice": [0.8, 0.1]}
    trials = {
        one: result(one, None, 0.6).model_copy(update=more) for one, more in ((trial(1e-3), early), (trial(3e-3), {}))
    }
    shown.results = trials
    assert shown.best is not None and shown.best.job == trial(1e-3)
    assert rates_of(trials.values()) == {"mae": 1e-3}


def test_the_table_names_who_runs_and_for_how_long_and_fits_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    shown = board(monkeypatch, clock)
    for seed in range(20):
        shown.running(job(seed, "long-pretraining"))
    clock[0] = 3725.0
    out = io.StringIO()
    Console(file=out, width=100).print(shown.table())
    assert "budget-004-long-pretraining-seed-0" in out.getvalue() and "1:02:05" in out.getvalue()
    assert "and 12 more" in out.getvalue() and len(out.getvalue().splitlines()) < 16


def test_without_a_terminal_a_line_a_minute_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], list[str]()
    shown = board(monkeypatch, clock)
    monkeypatch.setattr(live, "say", said.append)
    with shown.shown(Console(file=io.StringIO())):
        for clock[0] in range(0, 181, 5):
            shown.tick()
    assert len(said) == 4 and all(line.startswith("  jobs: 5 waiting") for line in said)
