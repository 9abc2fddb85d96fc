"""A command as the program itself would read it, without calling it: for what pages and manifests say."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from cluster.arguments import recipe_and_overrides
from cluster.cli import cli
from maetrain.recipes.config import RunConfig
from maetrain.recipes.load import load_recipe


class Typed(NamedTuple):
    """`settings`: None of a verb that takes none."""

    verb: list[str]
    given: dict[str, Any]
    settings: RunConfig | None


def parsed(words: Sequence[str]) -> Typed:
    """Raises click's error or InputError as the program would say it, and click's Exit after --help and --version."""
    assert words[0] == "maetrain"
    command: click.Command = cli
    context, verb, rest = click.Context(cli), [], list(words[1:])
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, found, rest = command.resolve_command(context, rest)
        assert name and found
        verb.append(name)
        command = found
    given = command.make_context(" ".join(["maetrain", *verb]), rest).params
    if isinstance(command, click.Group):
        raise click.UsageError(f"{' '.join(words)}: no command, only a group of them")
    if "overrides" not in given:
        return Typed(verb, given, None)
    recipe, overrides = recipe_and_overrides(given.get("recipe"), given["overrides"], "small")
    return Typed(verb, given, load_recipe(recipe, overrides))
