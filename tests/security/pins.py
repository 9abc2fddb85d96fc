"""The packages of a full installation: constraints.txt, line by line."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Name, as it is written there, -> version."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def normal(name: str) -> str:
    """One spelling for the names that PyPI calls equal."""
    return re.sub(r"[-_.]+", "-", name).lower()
