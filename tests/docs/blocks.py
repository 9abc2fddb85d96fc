"""Fenced blocks of Markdown pages, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *(page for folder in ("docs", "deploy") for page in sorted((ROOT / folder).rglob("*.md"))))
_FENCED = re.compile(r"(?:<!-- (\w+) -->\n)?^```([\w{}]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_ENDS = (">", "|", "&&", ";")


class Block(NamedTuple):
    """`mark`: of the comment above it, `<!-- runnable -->` or `<!-- story -->`; "" for none."""

    mark: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """One a command: continued lines are joined, comments and blank lines left out."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.startswith("#")]


def blocks(text: str) -> list[Block]:
    return [Block(mark or "", language, inside) for mark, language, inside in _FENCED.findall(text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the shell blocks of a page, without variables before and what it is piped to.

    Of a `ray job submit ... -- COMMAND` the COMMAND, of `sbatch` and `srun` what they start of maetrain's.
    """
    for block in blocks(text):
        if block.language not in ("", "bash", "sh"):
            continue
        pending = ""
        for line in block.lines:
            pending += f"{line}\n"
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quotation that is still open
                continue
            pending = ""
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words = words[1:]
            words = words[: next((i for i, word in enumerate(words) if word in _ENDS), len(words))]
            if words[:3] == ["ray", "job", "submit"] and "--" in words:
                words = words[words.index("--") + 1 :]
            if words[:1] in (["sbatch"], ["srun"]) and "maetrain" in words:
                words = words[words.index("maetrain") :]
            if words:
                yield words
        assert not pending, f"a quotation without an end: {pending}"
