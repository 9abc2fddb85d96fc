"""Whether every node sees the folders of a run: asked of each node before workers are placed.

A folder that one node does not share is otherwise found late: by the rank that lands there, after the others hold their
GPUs. The driver writes a file into OUT, each node reads it and writes one of its own, the driver looks for all of them.
Files have random names, so no node answers from what its NFS client remembers. One round trip of one task a node, all
at once; none where the driver's node is the only one: its view is the driver's. Nodes that join later are not asked.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_shards.errors import InputError
from data_shards.formats.files import is_remote, location, remove

_ANSWER_S = 120.0  # a cold node imports Python first; a mount that hangs never answers
_REMEDY = "mount it there under the same path with write access, or let pretrain write into a bucket (s3://...)"


def check_storage(out: str, inputs: Mapping[str, str]) -> None:
    """`out` must be written and `inputs` (place -> option) read by every other node that has cores for workers.

    InputError names the node and what it can't do.
    """
    nodes = worker_nodes(ray.nodes(), but=ray.get_runtime_context().get_node_id())
    if not nodes:
        return
    probe = location(out) / f".probe-{uuid.uuid4().hex}"
    try:
        try:
            probe.mkdir(parents=True, exist_ok=True)
            (probe / "driver").write_text("driver")
        except OSError as error:
            raise InputError(f"{out} cannot be written ({_why(error)}); make room, or give a place that can") from None
        complaints = _asked(nodes, str(probe), dict(inputs))
        for node, complaint in complaints.items():
            if complaint:
                raise InputError(f"node {node}: {complaint}")
        if unseen := [node for node in nodes if not (probe / nodes[node]).is_file()]:
            raise InputError(
                f"node {unseen[0]}: {out} is another folder there, what it writes is not seen here; {_REMEDY}"
            )
    finally:
        with suppress(OSError):  # it is small, and the run matters more
            remove(probe)


def worker_nodes(nodes: Sequence[Mapping[str, Any]], but: str) -> dict[str, str]:
    """What to call it -> id of each living node that can hold a worker, the one with the id `but` left out."""
    held = [n for n in nodes if n["Alive"] and n["Resources"].get("CPU", 0) > 0 and n["NodeID"] != but]
    return {f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node["NodeID"] for node in held}


def complaint(probe: str, name: str, inputs: Mapping[str, str]) -> str | None:
    """In a node: what is wrong with its view, in words, or None. Leaves the file `name` beside the driver's."""
    folder = location(probe)
    out = folder.parent
    try:
        if not (folder / "driver").is_file():
            return f"{out} is not the folder that the driver sees (not mounted?); {_REMEDY}"
        (folder / name).write_text(name)
    except OSError as error:
        return f"{out} cannot be written ({_why(error)}); {_REMEDY}"
    for place, option in inputs.items():
        try:
            if not _is_read(location(place)):
                return f"{option} {place} is not there or cannot be read; {_REMEDY}"
        except OSError as error:
            return f"{option} {place} cannot be read ({_why(error)}); {_REMEDY}"
    return None


_complaint = ray.remote(num_cpus=0, max_retries=0)(complaint)


def _why(error: OSError) -> str:
    """Errors of a bucket have no number, and say what they have to say in their text."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def _is_read(place: Path) -> bool:
    if is_remote(place):
        return place.exists()
    return os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0))


def _asked(nodes: Mapping[str, str], probe: str, inputs: Mapping[str, str]) -> dict[str, str | None]:
    asked = {}
    for node, node_id in nodes.items():
        there = _complaint.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        asked[there.remote(probe, node_id, inputs)] = node
    ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    return {node: _answer(reference) for reference, node in asked.items()}


def _answer(reference: ray.ObjectRef) -> str | None:
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {_ANSWER_S:.0f} s; does one of its mounts hang? (df there shows it)"
    except ray.exceptions.RayTaskError as error:
        why = f"{type(error.cause).__name__}: {error.cause}"
        return f"could not be asked ({why}); does it have the same maetrain, and the same credentials?"
    except ray.exceptions.RayError as error:
        return (
            f"gone while it was asked ({(str(error).splitlines() or ['no reason'])[0]}); the same command tries again"
        )
