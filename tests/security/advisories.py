"""Are holes known in what constraints.txt pins? Asks OSV and, where that doesn't answer, PyPI, by pip-audit.

pip-audit's own word won't do. Where a mirror stands for PyPI it skips every package, says "No known vulnerabilities
found" and ends with 0; where nothing answers it ends with 1, as if it had found some. So what counts is its JSON, and
in it every single pin. Exit code 0: asked about all of them, nothing known that isn't explained here. 1: something is.
3: could not ask, or not about all; that is no all-clear. --offline makes 3 a loud line and 0, for machines that can't.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.security.pins import CONSTRAINTS, normal, pins

SERVICES = ("osv", "pypi")
KNOWN, NOT_ASKED = 1, 3
LIMIT_S = 600
# id or alias of an advisory -> why it does not touch maetrain, and what would end that
EXPLAINED: dict[str, str] = {}

Ask = Callable[[str], Any]


class Outcome(NamedTuple):
    """`known`: one line an advisory. `unasked`: packages that no service was asked about."""

    known: list[str]
    unasked: list[str]

    @property
    def code(self) -> int:
        return KNOWN if self.known else NOT_ASKED if self.unasked else 0


def pip_audit(service: str, requirements: Path = CONSTRAINTS) -> Any:
    """What pip-audit found, as its JSON; None where it found no answer."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", "-s", service]
    command = [sys.executable, "-m", "pip_audit", "-r", str(requirements), *options]
    try:
        # as a command: pip-audit promises no Python interface
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)  # nosec B603 # our own words
        return json.loads(done.stdout) if done.stdout.strip() else _nothing(done)
    except (subprocess.TimeoutExpired, ValueError):
        return None


def _nothing(done: subprocess.CompletedProcess[str]) -> None:
    """No output is a service that did not answer, or an installation without pip-audit, which is a mistake."""
    if "No module named" in done.stderr:
        raise SystemExit(f"{done.stderr.strip()}: pip install -e '.[security]' first")


def judge(report: Any, pinned: Mapping[str, str], explained: Mapping[str, str]) -> Outcome:
    """`report`: pip-audit's JSON, or None. A pin counts as asked about if an answer about its version is in it."""
    known, asked = [], set()
    for found in report["dependencies"] if report else []:
        if "skip_reason" in found:
            continue
        asked.add((normal(found["name"]), found["version"]))
        for hole in found["vulns"]:
            if not explained.keys() & {hole["id"], *hole["aliases"]}:
                fixed = ", ".join(hole["fix_versions"]) or "no version"
                known.append(f"{found['name']} {found['version']}: {hole['id']}, fixed in {fixed}")
    return Outcome(known, [name for name, version in pinned.items() if (normal(name), version) not in asked])


def outcome_of(ask: Ask, pinned: Mapping[str, str], explained: Mapping[str, str]) -> Outcome:
    """The outcome of the first service that knows about all; else of the one that knows most, and any hole counts."""
    outcomes = []
    for service in SERVICES:
        outcomes.append(judge(ask(service), pinned, explained))
        if not outcomes[-1].unasked:
            break
    known = dict.fromkeys(line for outcome in outcomes for line in outcome.known)
    return Outcome(list(known), min((outcome.unasked for outcome in outcomes), key=len))


def main(words: list[str] | None = None, ask: Ask = pip_audit) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.advisories", description=__doc__.splitlines()[0])
    parser.add_argument("--offline", action="store_true", help="go on where no service answers, loudly")
    offline = parser.parse_args(words).offline
    pinned = pins()
    outcome = outcome_of(ask, pinned, EXPLAINED)
    for line in outcome.known:
        print(line)
    if outcome.unasked:
        print(
            f"ADVISORIES NOT ASKED: no answer about {len(outcome.unasked)} of {len(pinned)} packages, the first "
            f"{outcome.unasked[0]}, from {' or '.join(SERVICES)}. Nothing is known about holes in them: run this where "
            "api.osv.dev or pypi.org/pypi/*/json answers"
        )
    elif not outcome.known:
        print(f"advisories: none known for the {len(pinned)} pinned packages, {len(EXPLAINED)} explained")
    return 0 if offline and outcome.code == NOT_ASKED else outcome.code


if __name__ == "__main__":
    raise SystemExit(main())
