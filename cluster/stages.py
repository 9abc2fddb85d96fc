"""Stages of work whose results are kept in folders named after what they depend on.

A stage that has been finished with the same inputs is not done again; one whose inputs changed gets a new folder, and
can say what changed. Old folders stay, so going back to old settings costs nothing.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.provenance import maker
from data_shards.formats.files import write_text
from maetrain.checkpoint.fingerprint import differences, fingerprint

DONE = "stage.json"
LOCK = ".lock"  # two calls in one folder of stages would write over each other


@dataclass(frozen=True)
class Stage:
    """`inputs`: JSON-able settings and hashes of everything the result depends on."""

    root: Path
    name: str
    inputs: dict

    @cached_property
    def key(self) -> str:
        return fingerprint(self.inputs)

    @property
    def folder(self) -> Path:
        return self.root / f"{self.name}-{self.key[:8]}"

    @property
    def is_finished(self) -> bool:
        return (self.folder / DONE).is_file()

    def finish(self, seconds: float, made_by: Mapping[str, str] | None = None) -> None:
        """`made_by`: commit and hardware of the process that did it; None = this one."""
        done = {"inputs": self.inputs, "seconds": round(seconds, 2), "finished": time.time()}
        done["made_by"] = dict(made_by or maker())
        write_text(self.folder / DONE, json.dumps(done, indent=1))

    def made_by(self) -> str:
        """Commit and hardware of the process that did it, which the call that reports it may not share."""
        made_by = json.loads((self.folder / DONE).read_text()).get("made_by", {})
        return f"{made_by.get('commit', 'unknown commit')} on {made_by.get('hardware', 'unknown hardware')}"

    def state(self) -> str:
        """In words: kept, redone because of what, or run for the first time."""
        if self.is_finished:
            return f"kept ({self.folder})"
        if self.folder.is_dir() and any(self.folder.iterdir()):
            return "goes on"
        former = self._latest_other()
        if former is None:
            return "runs"
        changed = differences(former, self.inputs)
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        return f"redone, because of {shown}"

    def _latest_other(self) -> dict | None:
        """Inputs of the newest finished stage of this name."""
        done = [
            path
            for path in self.root.glob(f"{self.name}-????????/{DONE}")
            if len(path.parent.name) == len(self.name) + 9
        ]
        if not done:
            return None
        return json.loads(max(done, key=lambda path: path.stat().st_mtime).read_text())["inputs"]
