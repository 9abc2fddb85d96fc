"""Waiting for the GPUs a run was promised, before it decides what it runs on.

A run takes what it sees at its start: CPUs where there is no GPU, fewer ranks where there are few. On a cluster that
is still coming up, or whose autoscaler starts from nothing, that is the wrong answer; `cluster.gpus` says what to wait
for.
"""

import time

from ray.autoscaler.sdk import request_resources

from cluster.console import say
from cluster.session import Resources, resources_now
from data_shards.errors import InputError
from maetrain.recipes.config import ClusterConfig

_LOOK_EVERY_S = 1.0


def wait_for_gpus(cluster: ClusterConfig, resources: Resources) -> Resources:
    """`resources`, or what there is as soon as `cluster.gpus` GPUs are there. InputError after `cluster.gpu_wait_s`."""
    if resources.gpus >= cluster.gpus:
        return resources
    say(f"waiting for {cluster.gpus} GPUs, up to {cluster.gpu_wait_s:g} s: the cluster has {resources.gpus:g}")
    deadline = time.monotonic() + cluster.gpu_wait_s
    try:
        while resources.gpus < cluster.gpus:
            # each time: the wish is the cluster's, and another run that waits puts its own in place of it
            request_resources(bundles=[{"GPU": 1}] * cluster.gpus)
            if time.monotonic() > deadline:
                raise InputError(
                    f"cluster.gpus = {cluster.gpus}, and after {cluster.gpu_wait_s:g} s the cluster has "
                    f"{resources.gpus:g}: see `ray status`, raise cluster.gpu_wait_s, or ask for fewer"
                )
            time.sleep(_LOOK_EVERY_S)
            resources = resources_now()
    finally:
        request_resources(bundles=[])  # else the autoscaler would keep them after the run
    return resources
