"""Which addresses join a cluster."""

import pytest

from cluster.session import ray_session
from data_shards.errors import InputError


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_for_others_than_the_clusters_machines_are_refused_with_the_way(address: str) -> None:
    with (
        pytest.raises(InputError, match=rf"^--address {address}: .* `maetrain submit .* http://HOST:8265`$"),
        ray_session(address),
    ):
        pass
