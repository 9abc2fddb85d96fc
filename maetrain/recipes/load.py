"""Recipes: YAML files shipped beside this one, or a user's own, with key=value overrides on top.

An unknown key is an error that names the nearest one, and a bad value an error that names the key, the value and
what is allowed; never a silent default.
"""

import difflib
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from data_shards.errors import InputError
from maetrain.recipes.config import RunConfig


def recipe_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in files("maetrain.recipes").iterdir() if f.name.endswith(".yaml"))


def purpose(name: str) -> str:
    """The first line of a shipped recipe, without the comment sign."""
    return (files("maetrain.recipes") / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """`recipe`: a shipped name or a path to a YAML file; `overrides`: "pretrain.steps=300" and the like.

    InputError for unknown recipes and keys, and for values out of range.
    """
    text, where = _read(recipe)
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{where}: a recipe is a mapping of settings, this is a {type(settings).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"override {override!r}: write key=value, for example pretrain.steps=300")
        _set(settings, key.strip().split("."), _value(override, value))
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None


def _read(recipe: str) -> tuple[str, str]:
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not path.is_file():
            raise InputError(f"{recipe}: no such file; a recipe is a YAML file or one of {', '.join(recipe_names())}")
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError:
            raise InputError(f"{recipe}: not a text file; a recipe is YAML in UTF-8") from None
    if recipe not in recipe_names():
        raise InputError(f"unknown recipe {recipe!r}{_nearest(recipe, recipe_names())}")
    return (files("maetrain.recipes") / f"{recipe}.yaml").read_text(), f"recipe {recipe}"


def _value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: its value is not YAML; quote it") from None


def _set(settings: dict, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = settings.setdefault(key, {})
        if below is None:  # "pretrain:" with nothing below it
            below = settings[key] = {}
        if not isinstance(below, dict):
            raise InputError(f"unknown setting {'.'.join(keys)!r}: {key} is a value, not a group of settings")
        settings = below
    settings[keys[-1]] = value


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _group(path[:-1])
        return f"{where}: unknown setting {key!r}{_nearest(path[-1], known)}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "tuple_type":
        message = "a list is wanted, such as [1,2,4]"
    return (
        f"{where}: {key or 'settings'} = {first['input']!r}: {message}{more}"
        if not isinstance(first["input"], dict)
        else f"{where}: {key}: {message}{more}"
    )


def _group(path: Sequence[str]) -> list[str]:
    """Names of the settings below `path`."""
    model: type[BaseModel] = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def explained(config: RunConfig, without: Collection[str] = ()) -> str:
    """The full resolved configuration as YAML, each field with its meaning and unit as a comment.

    `without`: groups that had no effect and are left out.
    """
    return "\n".join(_lines(config, 0, without)) + "\n"


def _lines(model: BaseModel, depth: int, without: Collection[str] = ()) -> list[str]:
    pad, lines = "  " * depth, []
    for name, field in type(model).model_fields.items():
        if name in without:
            continue
        value = getattr(model, name)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:{comment}", *_lines(value, depth + 1)]
        else:
            plain = model.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
            lines.append(f"{pad}{name}: {text}{comment}")
    return lines
