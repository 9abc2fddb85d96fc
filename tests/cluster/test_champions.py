"""Which models are the best of their arms: never by the test persons."""

from cluster.champions import best_of_arms, merit
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult


def result(
    budget: int, arm: str, seed: int, monitor: float, test: float, validation: tuple[float, ...] = ()
) -> JobResult:
    job = FinetuneJob(budget=budget, arm=arm, seed=seed, subjects=("a",))
    return JobResult(
        job=job, monitor_steps=[0, 9], monitor_dice=[0.99, monitor], validation_dice=list(validation), test_dice=test,
        learning_rate=1e-3, steps=9, kept_step=9, training_s=1.0, scoring_s=1.0, seconds=2.0,
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


def test_validation_goes_before_monitor_persons() -> None:
    assert merit(result(4, "mae", 0, 0.9, 0.0, (0.1, 0.6, 0.5))) == 0.6
    found = best(result(4, "mae", 0, 0.9, 0.9, (0.1, 0.5)), result(4, "mae", 1, 0.1, 0.1, (0.6, 0.1)))
    assert found == {"mae": 1}
