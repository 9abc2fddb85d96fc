"""Writing beside the training: tried again while storage is away, told when it stays away, never silent."""

import threading
import time

import pytest

from maetrain.checkpoint.writer import Background, Lost, persistently


class Storage:
    """Fails `failures` times, then answers."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures, self.tries, self.error = failures, 0, error or OSError("gone")

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error
        return "there"


def test_a_storage_that_comes_back_is_written_to() -> None:
    storage = Storage(2)
    assert persistently(storage, 30) == "there" and storage.tries == 3


def test_a_storage_that_stays_away_is_given_up_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="gone"):
        persistently(Storage(99), 1.0)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("error", [KeyError("ours"), Lost("swept away")])
def test_what_no_further_try_mends_is_not_tried_again(error: Exception) -> None:
    storage = Storage(1, error)
    with pytest.raises(type(error)):
        persistently(storage, 30)
    assert storage.tries == 1


def test_a_task_runs_beside_and_is_taken_when_it_is_done() -> None:
    gate, background = threading.Event(), Background[str](1.0)
    assert not background.is_done and background.error is None
    background.start(lambda: "x" if gate.wait(10) else "never")
    assert not background.is_done and background.error is None
    gate.set()
    background.wait(5)
    assert background.is_done and background.error is None and background.take() == "x"
    background.start(Storage(99))
    background.wait(10)
    assert background.error == "gone" and background.take() is None
    background.start(Storage(1, KeyError("ours")))
    background.wait(5)
    with pytest.raises(KeyError):
        _ = background.error
