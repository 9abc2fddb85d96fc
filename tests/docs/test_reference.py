"""The reference pages tell all that the program has, and a docstring's characters mean nothing to Markdown."""

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml
from markdown_it import MarkdownIt

from cluster.cli import cli
from docs.reference import called, commands, modules, prose, settings, with_generated
from maetrain.recipes.config import RunConfig


def leaves(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(key, default) of every setting; a group is one whose model has fields."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def test_every_setting_stands_once_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", "\n".join(settings()), re.MULTILINE)
    assert {key: yaml.safe_load(default) for key, default in rows} == dict(leaves(RunConfig().model_dump(mode="json")))
    assert len(rows) == len({key for key, _ in rows}) >= 100


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("split.test_share", "above 0, below 1"),
        ("shards.format", "zarr, webdataset"),
        ("pretrain.zero_stage", "at least 0, at most 3"),
        ("title", ""),
    ],
)
def test_a_setting_tells_what_is_allowed(key: str, allowed: str) -> None:
    (row,) = [line for line in settings() if line.startswith(f"| `{key}` |")]
    assert row.split(" | ")[2].strip() == allowed


def test_every_command_tells_its_options_and_an_example() -> None:
    text = "\n".join(commands())
    parts = {part.partition("\n")[0]: part for part in text.split("## maetrain ")[1:]}
    assert set(parts) == {" ".join(words) for words, _ in called(cli)}
    for words, command in called(cli):
        part = parts[" ".join(words)]
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert f"`{option.opts[0]}" in part, option
        assert f"maetrain {' '.join(words)}" in part.partition("```bash")[2]
    assert "Ctrl-C and SIGTERM store one first." in parts["pretrain"]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}, "a bar inside a cell is escaped"


def test_a_modules_public_definitions_stand_with_signature_and_docstring() -> None:
    text = "\n".join(modules("data_shards.order"))
    assert "## data_shards.order.partition" in text
    assert "Splits the global order over ranks, one optimizer step at a time." in text
    assert "class World:\n    rank: int" in text
    assert re.search(r"def num_passes\(global_batch: int, micro_batch: int, num_ranks: int\) -> int", text)
    assert "\n### EpochOrder\n" in text and "\n#### at\n" in text
    assert "### _" not in text and "def _" not in text


def test_a_class_shows_its_fields_and_their_plain_defaults() -> None:
    archive = "\n".join(modules("data_shards.archive", "data_shards.formats", "maetrain.train"))
    assert "class PrivacyConfig(BaseModel):\n    names: Literal['auto', 'keep', 'hash'] = 'auto'\n" in archive
    assert "    max_chunk: int = 32\n" in archive
    assert "    warmup_steps: int = 20\n" in archive
    assert "    image_paths: tuple[Path, ...]\n" in archive


@pytest.mark.parametrize(
    "text",
    [
        "a *b* c",
        "sub-*/[ses-*/]anat",
        "write <case> there",
        "<table for all",
        "_private_ and snake_case",
        "C:\\#folder",
        "[x](y)",
        "> 0 is more",
    ],
)
def test_the_words_of_a_docstring_stay_as_they_are(text: str) -> None:
    blocks = MarkdownIt().parse(prose(text))
    assert [block.type for block in blocks] == ["paragraph_open", "inline", "paragraph_close"]
    tokens = blocks[1].children or []
    assert "".join(token.content for token in tokens) == text
    assert {token.type for token in tokens} <= {"text", "text_special"}


def test_what_stands_between_backticks_is_code_as_it_is() -> None:
    tokens = MarkdownIt().parseInline(prose("of `a_*b<c>` the *rest*"))[0].children or []
    assert [token.content for token in tokens if token.type == "code_inline"] == ["a_*b<c>"]


def test_a_marker_of_an_unknown_kind_is_an_error() -> None:
    assert with_generated("<!-- plan -->\ntext") == "<!-- plan -->\ntext"
    with pytest.raises(KeyError):
        with_generated("<!-- generated: nonsense -->")
