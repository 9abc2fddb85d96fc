"""What asks a driver to stop, and what hastens it."""

import os
import signal
import threading

import pytest

from cluster.signals import gentle_stop


def test_a_second_sigterm_hastens_nothing_and_ctrl_c_does() -> None:
    """A pod that goes gets several: from Ray, from its drain, from Kubernetes."""
    asked, heard = list[str](), threading.Event()

    def ask(reason: str) -> None:
        asked.append(reason)
        heard.set()

    with gentle_stop(ask, 60) as number:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert (asked, number()) == (["SIGTERM"], signal.SIGTERM)


def test_it_does_not_wait_longer_than_it_may() -> None:
    with pytest.raises(KeyboardInterrupt), gentle_stop(lambda _: None, 0.1):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)
