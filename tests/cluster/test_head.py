"""A head that does not come up, without Ray. One that does is in tests/integration."""

import os
import sys
from pathlib import Path

import pytest

from cluster import detached, head
from cluster.detached import Detached
from data_shards.errors import InputError
from tests.maetrain.tracking.stores import free_port


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Detached]:
    """What was started; a process that sleeps takes the place of Ray."""
    found: list[Detached] = []

    def start(_: list[str], *rest: object) -> Detached:
        found.append(detached.start_session([sys.executable, "-c", "import time; time.sleep(600)"], *rest))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(head, "start_session", start)
    return found


def nothing_is_left(started: list[Detached]) -> bool:
    return len(started) == 1 and not started[0].members() and head.running() is None


def test_ctrl_c_while_it_comes_up_leaves_no_process(started: list[Detached], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> bool:
        assert head.running() is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(head, "_listens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        head.start(*head.free_ports(2), None)
    assert nothing_is_left(started)


def test_one_that_is_not_up_in_time_is_told_and_ended(
    started: list[Detached], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(head, "_START_S", 0.0)
    with pytest.raises(InputError, match=rf"Ray does not come up; the end of {tmp_path}.*head\.log says why"):
        head.start(*head.free_ports(2), None)
    assert nothing_is_left(started) and os.getsid(0) != started[0].session


def test_two_servers_on_one_port_are_refused(started: list[Detached]) -> None:
    port = free_port()
    with pytest.raises(InputError, match=f"--port {port} and --ray-port {port}: two servers"):
        head.start(port, port, None)
    assert not started


def test_ports_drawn_together_differ_and_leave_out_those_that_are_named() -> None:
    named = head.free_ports(2)
    drawn = head.free_ports(400, besides=named)  # drawn one after another, some would be equal
    assert len({*named, *drawn}) == 402
