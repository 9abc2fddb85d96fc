"""What training code may ask of an experiment tracker. It is handed in, never looked up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """One run of an experiment store; `run_id` names it there."""

    @property
    def run_id(self) -> str | None: ...

    def tags(self, tags: Mapping[str, str]) -> None: ...

    def params(self, params: Mapping[str, object]) -> None: ...

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffered; on the store at the latest when the run ends."""

    def last_step(self, metric: str) -> int:
        """The highest step at which `metric` stands in the store, 0 for none: where a resumed run goes on logging."""

    def file(self, path: Path, folder: str | None = None) -> None:
        """A copy of `path` among the run's artifacts, below `folder`."""

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """The data the run has read; `digest` is the shard index hash."""

    def finish(self, status: str = "FINISHED") -> None: ...


class NullTracker:
    """Keeps nothing: for benchmarks, tests, and ranks other than the first."""

    run_id: str | None = None

    def tags(self, tags: Mapping[str, str]) -> None:
        pass

    def params(self, params: Mapping[str, object]) -> None:
        pass

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def last_step(self, metric: str) -> int:
        return 0

    def file(self, path: Path, folder: str | None = None) -> None:
        pass

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        pass

    def finish(self, status: str = "FINISHED") -> None:
        pass


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted names, as a tracker wants its parameters."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
