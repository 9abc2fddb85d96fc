"""How many ranks a cluster has room for; sweeps themselves are run in tests/integration/test_sweep.py."""

from typing import Any

import pytest

from cluster.sweep import ranks_that_fit


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([node(CPU=2)], 1, 0, 2),
        ([node(CPU=2)], 0.2, 0, 10),  # 2 // 0.2 is 9
        ([node(CPU=3), node(CPU=3)], 2, 0, 2),  # not 6 // 2
        ([node(CPU=3), node(alive=False, CPU=64)], 1, 0, 3),
        ([node(CPU=8, GPU=1), node(CPU=8)], 1, 0.5, 2),
        ([node(CPU=1, GPU=4)], 1, 0.5, 1),
        ([node(CPU=4)], 1, 1, 0),
        ([node()], 1, 0, 0),
    ],
)
def test_ranks_are_counted_node_by_node(nodes: list[dict], cpus: float, gpus: float, expected: int) -> None:
    assert ranks_that_fit(nodes, cpus, gpus) == expected
