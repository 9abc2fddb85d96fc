"""`maetrain submit`: a verb as a job of a cluster that runs already.

All that can be known to be wrong is said before the job exists: recipe and settings, the size of what is packed, the
way to the cluster, its version, another job that works on the same folder. What only the cluster can know the job says
before it asks for a GPU (`cluster.storage`).
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ray.job_submission import JobDetails

from cluster.console import say
from cluster.entrypoint import SENT_BY, check_words, next_id, passed_on, run_name, same_place, shell_command
from cluster.jobs import OUT, all_jobs, connect, exit_code, follow, in_words, launch, working_on
from cluster.packing import packed, packed_recipe
from data_shards.errors import InputError
from maetrain.recipes.config import RunConfig
from maetrain.recipes.load import load_recipe

_SLACK_S = 35  # beyond the grace that a run takes for its last checkpoint: for Ray's own end


@dataclass(frozen=True)
class Work:
    """A command. `recipe`: None where it needs none; `words`: verb and arguments with the recipe under this name."""

    recipe: str | None
    overrides: tuple[str, ...]
    words: Callable[[str | None], list[str]]
    out: str


@dataclass(frozen=True)
class Surroundings:
    """Of a job. `env`: variables of this machine; `cluster_env`, `env_file`: what the cluster has itself."""

    env: tuple[str, ...] = ()
    cluster_env: tuple[str, ...] = ()
    env_file: str | None = None
    working_dir: Path | None = None


def submit(work: Work, around: Surroundings, address: str, is_followed: bool) -> int:
    """Returns the exit code: the job's own where it was followed. InputError before there is a job."""
    config = load_recipe(work.recipe, work.overrides) if work.recipe else RunConfig()
    check_words(work.words(work.recipe))
    env = passed_on(around.env, os.environ)
    # read by the job's supervisor: Ray kills after 3 s otherwise, before a checkpoint is stored
    env["RAY_JOB_STOP_WAIT_TIME_S"] = str(math.ceil(config.cluster.grace_s) + _SLACK_S)
    with _package(work.recipe, around.working_dir) as (folder, recipe):
        brings_source = folder is not None and (folder / "cluster" / "cli.py").is_file()
        if not brings_source:
            env[SENT_BY] = version("maetrain")
        program = ["python", "-m", "cluster"] if brings_source else ["maetrain"]
        words = [*program, *work.words(recipe), "--address", "auto"]
        command = shell_command(words, around.cluster_env, around.env_file)
        client = connect(address)
        jobs = all_jobs(client, address)
        _check_free(jobs, work.out, address)
        job_id = next_id(run_name(work.out), (job.submission_id or "" for job in jobs))
        runtime_env = {"env_vars": env} | ({"working_dir": str(folder)} if folder else {})
        launch(
            client,
            address,
            entrypoint=command,
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata={OUT: same_place(work.out)},
        )
    say(f"{job_id}: {command}")
    if not is_followed:
        on = f"{job_id} --address {address}"
        say(f"follow it: maetrain jobs logs {on}; stop it: maetrain jobs stop {on}")
        return 0
    job = follow(client, address, job_id)
    say(in_words(job))
    return exit_code(job)


def _check_free(jobs: Sequence[JobDetails], out: str, address: str) -> None:
    if job := working_on(list(jobs), out):
        on = f"{job.submission_id} --address {address}"
        raise InputError(
            f"{out}: the job {job.submission_id} ({job.status.value}) works on it already; follow it: maetrain jobs "
            f"logs {on}; or stop it first, the run goes on where it was: maetrain jobs stop {on}"
        )


@contextmanager
def _package(recipe: str | None, working_dir: Path | None) -> Iterator[tuple[Path | None, str | None]]:
    """The folder to send, if any, and what the recipe is called on the other side."""
    is_file = recipe is not None and Path(recipe).is_file() and (recipe.endswith((".yaml", ".yml")) or "/" in recipe)
    if working_dir is not None:
        if recipe is not None and is_file:
            if not (path := Path(recipe).resolve()).is_relative_to(working_dir):
                raise InputError(f"{recipe} is not in --working-dir {working_dir}; move it there, or leave that out")
            recipe = f"./{path.relative_to(working_dir)}"
        with packed(working_dir) as folder:
            if recipe is not None and is_file and not (folder / recipe).is_file():
                raise InputError(
                    f"{recipe} does not go along: --working-dir leaves out hidden files, what git ignores, what is "
                    "called like a secret, and folders that hold data or runs; move it to another folder, or name it "
                    "otherwise"
                )
            yield folder, recipe
    elif recipe is not None and is_file:
        with packed_recipe(Path(recipe)) as folder:
            yield folder, f"./{Path(recipe).name}"
    else:
        yield None, recipe
