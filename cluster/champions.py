"""The models that people will want, under one name in MLflow: of each arm the best one (alias best-ARM), and of all.

Best is by Dice of the kept weights at the largest budget, on its validation cases, where it has some, else on the
monitor persons. So these choose which model is served, never a number in the report; the test persons choose nothing,
or their scores would flatter the model. An earlier sweep's model keeps an alias unless the new one is at least as good.
"""

import re
from collections.abc import Callable, Mapping

from cluster.stages import Stage
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult
from maetrain.tracking.mlflow_tracker import find_run
from maetrain.tracking.model import Claim, log_model, register
from maetrain.tracking.work import WORK_TAG, Tracking, work_in

ALIAS = "champion"
ALIAS_OF_ARM = "best-{}"  # an arm may be called "v2", which MLflow takes for a version


def best_of_arms(results: Mapping[FinetuneJob, JobResult]) -> dict[str, FinetuneJob]:
    """arm -> its best job at the largest budget, the lowest seed of equals."""
    largest = max(job.budget for job in results)
    best: dict[str, FinetuneJob] = {}
    for job in sorted(results, key=lambda job: (job.arm, job.seed)):
        if job.budget == largest and (job.arm not in best or results[job].kept_dice > results[best[job.arm]].kept_dice):
            best[job.arm] = job
    return best


def crown(
    results: Mapping[FinetuneJob, JobResult],
    stages: Mapping[FinetuneJob, Stage],
    data_set: str,
    tracking: Tracking,
    say: Callable[[str], None],
) -> None:
    """Logs and registers them. StoreAway where the store does not answer; the next call can go on."""
    name = f"maetrain-{re.sub(r'[^A-Za-z0-9._-]', '-', data_set)}"
    best = best_of_arms(results)
    logged: dict[str, str] = {}
    for arm, job in best.items():
        work = work_in(stages[job].folder, stages[job].key)
        run_id = find_run(tracking.uri, tracking.experiment_id, WORK_TAG, work)
        if run_id is not None:  # its journal waits for a store that was away
            logged[arm] = log_model(tracking.uri, run_id, stages[job].folder / "model", arm)
    if not logged:
        return
    job = best[max(logged, key=lambda arm: results[best[arm]].kept_dice)]
    claims = {arm: Claim(best[arm].budget, results[best[arm]].kept_dice) for arm in logged}
    for arm, claim in claims.items():
        register(tracking.uri, logged[arm], name, claim, ALIAS_OF_ARM.format(arm))
    claim = claims[job.arm]
    version, holder, held = register(tracking.uri, logged[job.arm], name, claim, ALIAS)
    if holder == version:
        say(f"  model {name}@{ALIAS}: {job.name} ({version}, {claim})")
    else:
        say(f"  model {name}@{ALIAS} stays {holder} ({held}); {job.name} ({claim}) is {version}")
