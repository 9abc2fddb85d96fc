"""The models that people will want: of each arm the best one in MLflow, of all of them the best one by name and alias.

Best is by validation Dice where a budget was validated, else by Dice on the monitor persons, at the largest budget: the
test persons choose nothing, or their scores would flatter the model that is served.
"""

import re
from collections.abc import Callable, Mapping

from cluster.stages import Stage
from cluster.tracked import Tracking
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult
from maetrain.tracking.mlflow_tracker import find_run
from maetrain.tracking.model import log_model, register
from maetrain.tracking.patience import is_passing
from maetrain.tracking.work import WORK_TAG

ALIAS = "champion"


def merit(result: JobResult) -> float:
    """What a model is chosen by; 0..1."""
    return result.best_validation if result.best_validation is not None else result.monitor_dice[-1]


def best_of_arms(results: Mapping[FinetuneJob, JobResult]) -> dict[str, FinetuneJob]:
    """arm -> its best job at the largest budget, the lowest seed of equals."""
    largest = max(job.budget for job in results)
    best: dict[str, FinetuneJob] = {}
    for job in sorted(results, key=lambda job: (job.arm, job.seed)):
        if job.budget == largest and (job.arm not in best or merit(results[job]) > merit(results[best[job.arm]])):
            best[job.arm] = job
    return best


def crown(
    results: Mapping[FinetuneJob, JobResult],
    stages: Mapping[FinetuneJob, Stage],
    data_set: str,
    tracking: Tracking,
    say: Callable[[str], None],
) -> None:
    """Logs and registers them; said, and left for the next call, where the store does not answer."""
    name = f"maetrain-{re.sub(r'[^A-Za-z0-9._-]', '-', data_set)}"
    best = best_of_arms(results)
    logged: dict[str, str] = {}
    try:
        for arm, job in best.items():
            run_id = find_run(tracking.uri, tracking.experiment_id, WORK_TAG, stages[job].key)
            if run_id is not None:  # its journal waits for a store that was away
                logged[arm] = log_model(tracking.uri, run_id, stages[job].folder / "model", arm)
        if not logged:
            return
        champion = max(logged, key=lambda arm: merit(results[best[arm]]))
        version = register(tracking.uri, logged[champion], name, ALIAS)
    except Exception as error:  # MLflow's own and its transports' are of many classes
        if not is_passing(error):
            raise
        say(f"  the best models are not in MLflow yet ({type(error).__name__}): the same command logs them")
        return
    say(f"  model {name}@{ALIAS}: {best[champion].name} ({version})")
