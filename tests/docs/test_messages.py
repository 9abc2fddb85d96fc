"""Each message that the troubleshooting page quotes is one that the program can say."""

import ast
import re
from functools import cache

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("cluster", "maetrain", "data_shards")
HOLE = "\0"  # where the program fills in a value


def quoted() -> list[str]:
    """First cells of all tables."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)


@cache
def templates() -> tuple[str, ...]:
    """Every text in the source, values replaced by HOLE."""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            no_messages = {id(text) for node in ast.walk(tree) for text in _no_messages(node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else HOLE for p in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in no_messages:
                    found.append(node.value)
    return tuple(found)


def _no_messages(node: ast.AST) -> list[ast.expr]:
    """Texts below `node` that nobody is shown by themselves: its docstring, the pieces of a text with holes."""
    if isinstance(node, ast.JoinedStr):
        return node.values
    if (
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    ):
        return [node.body[0].value]
    return []


def can_be_said(message: str) -> bool:
    """Whether one text of the source is `message`, with anything in the place of its dots."""
    fixed = [re.escape(part) for part in message.split("...")]
    pattern = re.compile(".*".join(fixed), re.DOTALL)
    return any(pattern.fullmatch(template) for template in templates())


def test_the_page_has_many_messages_and_each_once() -> None:
    assert len(quoted()) >= 40
    assert len(quoted()) == len(set(quoted()))


def test_each_quoted_message_can_be_said() -> None:
    unknown = [message for message in quoted() if not can_be_said(message)]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("message", quoted())
def test_each_quoted_message_has_words_to_search_for(message: str) -> None:
    assert max(len(part) for part in message.split("...")) >= 6


def test_each_row_tells_a_cause_and_a_way_out() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(quoted())
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 3 and all(cells), row


@pytest.mark.parametrize(
    "message",
    [
        "unknown recipes ...",
        "unknown recipe ",  # the program says more
        "... is not there: build shards first, or give their folder",
        "Look at recipes and settings.",  # a docstring
    ],
)
def test_a_message_that_nobody_says_is_found(message: str) -> None:
    assert not can_be_said(message)
