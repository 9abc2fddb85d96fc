"""Jobs on a cluster, through Ray's job server: reaching it, following, stopping. Its errors come out in one line.

The server is Ray's dashboard, port 8265 of the head. It is asked once without Ray's client before anything else: that
one waits for ever for a host that swallows packets.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import click
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.console import say
from cluster.entrypoint import out_of, same_place
from data_shards.errors import InputError

OUT = "maetrain.out"  # the key in a job's metadata
_REACH_S = 10.0
_ASK_EVERY_S = 1.0
_AGENT_S = 60.0
_REMEDY = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, a file with the token that the head was started with"
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # they narrate


def connect(address: str) -> JobSubmissionClient:
    """InputError where nothing answers, where the token is missing or wrong, and for another version of Ray."""
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: give the job server's address, http://HEAD:8265")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray's client would prefer them to what it is told
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=_REACH_S)
    except requests.exceptions.RequestException as error:
        raise InputError(
            f"--address {address}: no answer ({_short(error)}); is the head up, and port 8265 reachable from here? "
            "From outside: ssh -L 8265:127.0.0.1:8265 HEAD"
        ) from None
    with told(address):
        client = JobSubmissionClient(address)
        there = client._do_request("GET", "/api/version").json()["ray_version"]  # Ray's client asks, and keeps it
    if _release(there) != _release(ray.__version__):
        raise InputError(
            f"--address {address}: the cluster has Ray {there}, this machine {ray.__version__}; install the same: "
            f"pip install 'ray[default,train,tune]=={there}'"
        )
    return client


@contextmanager
def told(address: str) -> Iterator[None]:
    """What Ray's client raises, as an InputError."""
    try:
        yield
    except AuthenticationError as error:
        if error.message.startswith("Authentication required"):
            raise InputError(f"--address {address}: the cluster wants a token; {_REMEDY}") from None
        raise InputError(f"--address {address}: the cluster does not take this token; {_REMEDY}") from None
    except (OSError, aiohttp.ClientError, RuntimeError, KeyError) as error:  # those of requests are OSErrors
        raise InputError(f"--address {address}: not what a job server of Ray answers ({_short(error)})") from None


def launch(client: JobSubmissionClient, address: str, **job: Any) -> None:
    """Submits it; again and again for a while where the head is up and its agent, which starts jobs, is not yet."""
    end = time.monotonic() + _AGENT_S
    with told(address):
        while True:
            try:
                client.submit_job(**job)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(_ASK_EVERY_S)


def find(client: JobSubmissionClient, address: str, job_id: str) -> JobDetails:
    """InputError where there is no such job."""
    for job in all_jobs(client, address):
        if job.submission_id == job_id:
            return job
    raise InputError(f"{job_id}: no such job; `maetrain jobs list --address {address}` names them")


def all_jobs(client: JobSubmissionClient, address: str) -> list[JobDetails]:
    """Those that were submitted, oldest first."""
    with told(address):
        jobs = [job for job in client.list_jobs() if job.submission_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def working_on(jobs: list[JobDetails], out: str) -> JobDetails | None:
    """The unfinished job with this --out, also one that plain `ray job submit` has started."""
    for job in jobs:
        place = (job.metadata or {}).get(OUT) or out_of(job.entrypoint or "")
        if not job.status.is_terminal() and place == same_place(out):
            return job
    return None


def follow(client: JobSubmissionClient, address: str, job_id: str) -> JobDetails:
    """Prints the log until the job has ended. Ctrl-C leaves the job alone and says how to go on.

    InputError, which says the same, where the connection is lost.
    """
    on = f"{job_id} --address {address}"
    alone = f"{job_id} goes on without you; follow it: maetrain jobs logs {on}; stop it: maetrain jobs stop {on}"
    try:
        with told(address):
            asyncio.run(_tail(client, job_id))
        return wait(client, address, job_id)
    except KeyboardInterrupt:
        say(f"\n{alone}")
        raise SystemExit(130) from None
    except InputError as error:
        raise InputError(f"--address {address}: the connection is lost ({_short(error)}); {alone}") from None


async def _tail(client: JobSubmissionClient, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        click.echo(lines, nl=False)


def wait(client: JobSubmissionClient, address: str, job_id: str) -> JobDetails:
    """Until the job has ended."""
    while not (job := find(client, address, job_id)).status.is_terminal():
        time.sleep(_ASK_EVERY_S)
    return job


def exit_code(job: JobDetails) -> int:
    """0 only for success; else the driver's own code, where it got so far."""
    return 0 if job.status == JobStatus.SUCCEEDED else (job.driver_exit_code or 1)


def in_words(job: JobDetails) -> str:
    """One line; of a failed job the reason, without the log that Ray repeats in it."""
    if job.status == JobStatus.FAILED and job.message:
        return f"{job.submission_id}: FAILED, {job.message.splitlines()[0].removesuffix(':')}"
    return f"{job.submission_id}: {job.status.value}"


def _release(of: str) -> list[str]:
    return of.split(".")[:2]


def _short(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join((str(error) or type(error).__name__).split())[:200]
