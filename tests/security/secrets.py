"""Looks for keys, tokens and passwords in every file that git knows, by detect-secrets; half a minute.

What it takes for a secret and is none stands in `EXPLAINED`, with the reason; a line there that explains nothing any
more is an error, too. Exit code 1 where something is left.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.security.pins import ROOT

PICTURES = (".png", ".svg")
# pattern that a whole finding must match, "file: line" -> why that is no secret
EXPLAINED = {
    r"deploy/k8s/.*: secretName: [a-z-]+": "the name of a Kubernetes Secret; its value is in no file",
    r"deploy/k8s/base/mlflow\.yaml: # no password: .*": "a comment that says where the password comes from",
    r"tests/.*: .*://me:(secret|\.\*|\*\*\*)@.*": "the made-up login of tests that passwords are hidden",
    r"tests/deploy/test_policy\.py: .*\"secretName\": \"ray-token\".*": "the name of a Kubernetes Secret",
    r"tests/data_shards/loading/test_pretrain\.py: def test_\w+\(index\):": "a long name of a test",
    r'cluster/mlflow_plan\.py: _?[A-Z_]+ = "MLFLOW_[A-Z_]+".*': "the name of a variable",
    r"tests/.*PASSWORD = .*\"correct horse battery\"": "of servers that a test starts and ends",
    r"tests/.*: .*A_SECRET.*(hush|of the file).*": "made up, to see that it is hidden",
    r"tests/cluster/test_(entrypoint|submit)\.py: .*://\w*:?hush@.*": "made up, to see that it is refused",
    r"tests/cluster/test_mlflow_plan\.py: .*:secret-of-the-database@.*": "made up, to see that it is hidden",
    r'docs/results/.*/inputs\.json: "(shard index|commit)": "[0-9a-f]+",': "hashes of shards and of code",
    r"benchmarks/shard_s3\.py: .*\"key\": \"nobody\", \"secret\": \"nothing\".*": "for moto, which asks for any login",
}


class Finding(NamedTuple):
    """`line` without the blanks around it."""

    file: str
    line: str
    kind: str

    @property
    def text(self) -> str:
        return f"{self.file}: {self.line}"


def scan(files: Sequence[str], root: Path) -> list[Finding]:
    """Everything that detect-secrets takes for a secret. `files` relative to `root`. Nothing leaves this machine."""
    command = [sys.executable, "-m", "detect_secrets", "scan", "--no-verify", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)  # nosec B603 # our own words
    if done.returncode:
        raise SystemExit(f"detect-secrets ended with {done.returncode}: {done.stderr.strip()}")
    found = json.loads(done.stdout)["results"]
    return [
        Finding(file, (root / file).read_text().splitlines()[one["line_number"] - 1].strip(), one["type"])
        for file, ones in found.items()
        for one in ones
    ]


def left(findings: Sequence[Finding], explained: Mapping[str, str]) -> tuple[list[Finding], list[str]]:
    """(findings that no pattern explains, patterns that explain none)."""
    unexplained = [f for f in findings if not any(re.fullmatch(pattern, f.text) for pattern in explained)]
    unused = [pattern for pattern in explained if not any(re.fullmatch(pattern, f.text) for f in findings)]
    return unexplained, unused


def main() -> int:
    git = ["git", "ls-files"]  # of the PATH, as every other git here
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)  # nosec B603 # our own words
    files = [name for name in listed.stdout.splitlines() if not name.endswith(PICTURES) and (ROOT / name).is_file()]
    unexplained, unused = left(scan(files, ROOT), EXPLAINED)
    for finding in unexplained:
        print(f"{finding.file}: {finding.kind} in a line of {len(finding.line)} characters: take it out and replace it")
    for pattern in unused:
        print(f"tests/security/secrets.py: nothing matches {pattern!r} any more: take it out")
    if not unexplained and not unused:
        print(f"secrets: none in {len(files)} files, {len(EXPLAINED)} kinds of lines explained")
    return int(bool(unexplained or unused))


if __name__ == "__main__":
    raise SystemExit(main())
