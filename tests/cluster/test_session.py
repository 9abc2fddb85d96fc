"""Which addresses join a cluster."""

import os

import pytest
import ray

from cluster.session import ray_session
from data_shards.errors import InputError


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_for_others_than_the_clusters_machines_are_refused_with_the_way(address: str) -> None:
    with (
        pytest.raises(InputError, match=rf"^--address {address}: .* `maetrain submit .* http://HOST:8265`$"),
        ray_session(address),
    ):
        pass


def test_the_job_servers_address_in_the_environment_is_not_taken_for_the_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ray job` reads it from RAY_ADDRESS, and so would `auto`."""
    seen = []
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_ADDRESS")))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session("auto"):
        assert seen == [None]
