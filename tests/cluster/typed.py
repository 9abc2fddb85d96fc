"""Commands as they are typed, in this process: what they print, how they end, and a mistake told as it should be."""

import sys
from collections.abc import Callable

import pytest

from cluster import cli, session

Outcome = tuple[int, str, str]
"""Exit code, stdout, stderr."""
Run = Callable[..., Outcome]


def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Run:
    """Gives the function that runs `maetrain WORDS`."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["maetrain", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capfd.readouterr())

    return run


def forbid_ray(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """From here on the start of a Ray session fails the test."""

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError(why)

    monkeypatch.setattr(session.ray, "init", no_ray)


def mistake(outcome: Outcome, *parts: object) -> None:
    """Exit code 2 and exactly one line on stderr, with all `parts` in it."""
    code, _, stderr = outcome
    lines = stderr.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("maetrain: "), outcome
    for part in parts:
        assert str(part) in lines[0], lines[0]
