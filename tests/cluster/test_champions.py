"""Which models are the best of their arms, never by the test persons; and to which runs they are logged."""

from pathlib import Path

import pytest

from cluster import champions
from cluster.champions import best_of_arms, crown
from cluster.stages import Stage
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult
from maetrain.tracking.deliver import Delivery
from maetrain.tracking.journal import JournalTracker
from maetrain.tracking.mlflow_tracker import MlflowTracker, open_experiment
from maetrain.tracking.model import Claim, Registered
from maetrain.tracking.work import Tracking


def result(
    budget: int,
    arm: str,
    seed: int,
    monitor: float,
    test: float,
    validation: tuple[float, ...] = (),
    kept_step: int = 9,
) -> JobResult:
    job = FinetuneJob(budget=budget, arm=arm, seed=seed, subjects=("a",))
    return JobResult(
        job=job, monitor_steps=[0, 5, 9], monitor_dice=[0.99, 0.98, monitor], validation_dice=list(validation),
        test_dice=test, learning_rate=1e-3, steps=9, kept_step=kept_step, training_s=1.0, scoring_s=1.0, seconds=2.0,
    )  # fmt: skip


def best(*results: JobResult) -> dict[str, int]:
    return {arm: job.seed for arm, job in best_of_arms({r.job: r for r in results}).items()}


def test_the_largest_budget_counts_and_there_the_monitor_dice_at_the_end() -> None:
    found = best(
        result(4, "mae", 0, 0.5, 0.9),
        result(4, "mae", 1, 0.7, 0.1),  # the worst on the test persons
        result(1, "mae", 2, 0.9, 0.9),
        result(4, "scratch", 3, 0.2, 0.2),
        result(4, "scratch", 2, 0.2, 0.3),
    )
    assert found == {"mae": 1, "scratch": 2}, "the lower seed of equals"


def test_validation_goes_before_monitor_persons_and_the_kept_weights_count() -> None:
    assert result(4, "mae", 0, 0.9, 0.0, (0.1, 0.6, 0.5)).kept_dice == 0.5, "the last ones, though others were better"
    assert result(4, "mae", 0, 0.9, 0.0, (0.1, 0.6, 0.5), kept_step=5).kept_dice == 0.6
    assert result(4, "mae", 0, 0.9, 0.0).kept_dice == 0.9
    found = best(result(4, "mae", 0, 0.9, 0.9, (0.1, 0.8, 0.5)), result(4, "mae", 1, 0.1, 0.1, (0.1, 0.1, 0.6)))
    assert found == {"mae": 1}


def test_models_are_logged_to_the_runs_of_their_own_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sweeps with equal jobs, delivered to one store; the alias stays with the first."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = open_experiment(uri, "tests", tmp_path / "artifacts")
    tracking = Tracking(uri, experiment, MlflowTracker(uri, experiment, "parent").run_id)
    job, logged, said = result(4, "mae", 0, 0.5, 0.5).job, list[tuple[str, Path]](), list[str]()
    monkeypatch.setattr(
        champions, "log_model", lambda uri, run_id, folder, name: logged.append((run_id, folder)) or "models:/m-1"
    )
    aliases: list[str] = []

    def register(*words: object) -> Registered:
        aliases.append(str(words[-1]))
        return Registered("models:/x/2", "models:/x/1", Claim(8, 0.7))

    monkeypatch.setattr(champions, "register", register)
    runs = []
    for name in ("one", "two"):
        stage = Stage(tmp_path / name / "jobs", job.name, {"same": "inputs"})
        journal = JournalTracker(stage.folder / "journal.jsonl", job.name, stage.key)
        journal.finish()
        delivery = Delivery(journal.path, tracking, print)
        assert delivery.forward()
        runs.append((delivery.run_id, stage.folder / "model"))
        crown({job: result(4, "mae", 0, 0.5, 0.5)}, {job: stage}, "My data", tracking, said.append)
    assert logged == runs and runs[0][0] != runs[1][0]
    wanted = (
        f"maetrain-My-data@champion stays models:/x/1 (Dice 0.700 at 8); {job.name} (Dice 0.500 at 4) is models:/x/2"
    )
    assert said == [f"  model {wanted}"] * 2 and aliases == ["best-mae", "champion"] * 2
