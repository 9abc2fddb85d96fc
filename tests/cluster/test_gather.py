"""Waiting for GPUs. The cluster is made up: what it has is a list of answers."""

from collections.abc import Iterator

import pytest

from cluster import gather
from cluster.session import Resources
from data_shards.errors import InputError
from maetrain.recipes.load import load_recipe


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict]]:
    """What the autoscaler was asked for, in order."""
    bundles: list[list[dict]] = []
    monkeypatch.setattr(gather, "request_resources", lambda **wish: bundles.append(wish["bundles"]))
    monkeypatch.setattr(gather, "_LOOK_EVERY_S", 0.01)
    return bundles


def growing(*gpus: float) -> Iterator[Resources]:
    return (Resources(8, there) for there in gpus)


def test_without_a_number_nothing_is_waited_for(asked: list[list[dict]]) -> None:
    nothing = Resources(8, 0)
    assert gather.wait_for_gpus(load_recipe("demo").cluster, nothing) is nothing
    assert gather.wait_for_gpus(load_recipe("demo", ("cluster.gpus=2",)).cluster, Resources(8, 2)).gpus == 2
    assert asked == []


def test_a_run_waits_until_its_gpus_are_there_and_asks_an_autoscaler_for_them(
    asked: list[list[dict]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = growing(0, 1, 3)
    monkeypatch.setattr(gather, "resources_now", lambda: next(answers))
    cluster = load_recipe("demo", ("cluster.gpus=2",)).cluster
    assert gather.wait_for_gpus(cluster, Resources(8, 0)) == Resources(8, 3)
    wish = [{"GPU": 1}, {"GPU": 1}]
    assert asked == [wish, wish, wish, []], "two, again at each look, and not for longer than it waited"
    assert "waiting for 2 GPUs, up to 900 s: the cluster has 0" in capsys.readouterr().out


def test_gpus_that_never_come_end_the_wait(asked: list[list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "resources_now", lambda: Resources(8, 1))
    cluster = load_recipe("demo", ("cluster.gpus=2", "cluster.gpu_wait_s=0.1")).cluster
    with pytest.raises(InputError, match=r"cluster.gpus = 2, and after 0.1 s the cluster has 1: see `ray status`"):
        gather.wait_for_gpus(cluster, Resources(8, 1))
    assert asked[-1] == []
