"""Joining or starting Ray, and what its workers need in their environment."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's own bars and tables would write over ours
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

import ray

from data_shards.errors import InputError


@dataclass(frozen=True)
class Resources:
    cpus: float
    gpus: float


@contextmanager
def ray_session(address: str | None = None, object_store_mib: int = 256) -> Iterator[Resources]:
    """Ray for the length of a `with` block: a running cluster at `address`, or one on this machine.

    A session that was open before is used and left open. `address`: `auto` or HOST:PORT of the cluster's head, for a
    process on one of its machines. InputError where no cluster answers there.
    """
    if address is not None and "://" in address:  # Ray Client, whose calls all go over the net, and the job server
        raise InputError(
            f"--address {address}: is for machines of the cluster, as auto or HOST:PORT; from elsewhere: "
            "`maetrain submit ... --address http://HOST:8265`"
        )
    if ray.is_initialized():
        yield resources_now()
        return
    if os.environ.get("RAY_ADDRESS", "").startswith(("http://", "https://")):  # the job server's, for `ray job`
        del os.environ["RAY_ADDRESS"]
    options: dict = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": object_store_mib * 2**20, "num_cpus": _cores()}
    try:
        ray.init(address=address or "local", **options)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:
        if address is None:
            raise
        first = (str(error).splitlines() or ["no answer"])[0]
        raise InputError(f"--address {address}: no Ray cluster answers ({first}); start one with `ray start`") from None
    try:
        yield resources_now()
    finally:
        ray.shutdown()


def result_of(reference: ray.ObjectRef) -> Any:
    """The result of a finished task; a user's mistake inside it comes out as the plain InputError it was."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def _cores() -> int:
    # the cores this process may use, which inside a container are fewer than the machine's
    return len(os.sched_getaffinity(0))


def resources_now() -> Resources:
    """Those of all living nodes of the cluster, taken or free."""
    total = ray.cluster_resources()
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0))
