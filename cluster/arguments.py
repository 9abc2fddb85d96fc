"""Kinds of arguments that the commands share."""

import os
from pathlib import Path
from typing import Any

import click

NO_BUCKET = "a bucket can't be given here, only a path"


class Local(click.Path):
    """A path of this machine, made absolute: Ray's workers may stand in another folder.

    Buckets are refused, and what would lie in a file as if that were a folder.
    """

    def __init__(self, **kinds: bool) -> None:
        super().__init__(path_type=Path, resolve_path=True, **kinds)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value}: {NO_BUCKET}", param, ctx)
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if file := next((above for above in path.parents if above.is_file()), None):
            self.fail(f"{path}: {file} is a file, nothing can lie in it", param, ctx)
        return path


PATH = Local()
FOLDER = Local(file_okay=False)
FILE = Local(dir_okay=False)


class Place(click.ParamType):
    """A folder of this machine, made absolute, or of a bucket (s3://bucket/folder)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from data_shards.formats.files import location

        place = location(value)
        return place if "://" in str(value) else place.resolve()


PLACE = Place()
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
PORT = click.IntRange(1, 65535)
ADDRESS = click.option(
    "--address", help="Ray cluster that this machine is part of: auto, or HOST:PORT; without it, Ray starts here."
)
JOB_SERVER = click.option(
    "--address",
    default="http://127.0.0.1:8265",
    show_default=True,
    envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
    show_envvar=True,
    help="Job server of the cluster.",
)


def examples(*lines: str) -> str:
    """An epilog of commands, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def recipe_and_overrides(recipe: str | None, overrides: tuple[str, ...], default: str) -> tuple[str, tuple[str, ...]]:
    """The recipe may be left out: then the first word is already an override."""
    if recipe is None:
        return default, overrides
    return (default, (recipe, *overrides)) if "=" in recipe else (recipe, overrides)
