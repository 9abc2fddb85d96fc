"""Reference pages out of the code: commands from click, settings from pydantic, modules from their docstrings.

A page says where its text goes: `<!-- generated: commands -->`, `<!-- generated: settings -->` or
`<!-- generated: modules PACKAGE ... -->`; `<!-- generated: contents GLOB ... -->` puts pages below it into the
navigation. Other readers of Markdown don't see it. Modules are read as text, so that no page waits for torch.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"^<!-- generated: (\w+)((?: [\w.*/]+)*) -->$", re.MULTILINE)
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def with_generated(text: str) -> str:
    """A page with its markers replaced. KeyError for a marker of an unknown kind."""
    makers = {"commands": commands, "settings": settings, "modules": modules, "contents": contents}
    return MARKER.sub(lambda marker: "\n".join(makers[marker[1]](*marker[2].split())), text)


def contents(*globs: str) -> Iterator[str]:
    yield from ("```{toctree}", ":hidden:", ":glob:", "", *globs, "```")


def commands() -> Iterator[str]:
    """Every command that can be called: its words, arguments, options and examples."""
    from cluster.cli import cli

    for words, command in called(cli):
        context = click.Context(command, info_name=f"maetrain {' '.join(words)}")
        yield from (
            f"## maetrain {' '.join(words)}",
            "",
            "```text",
            command.get_usage(context).partition(" ")[2],
            "```",
        )
        yield from ("", prose(command.help or ""), "")
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        if options:
            yield from _table(("option", "meaning"), [_option(option, context) for option in options])
        examples = (command.epilog or "").partition("Examples:\n")[2]
        yield from ("```bash", inspect.cleandoc("\n" + examples), "```", "")


def called(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """(words, command) of each that is no group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from called(command, (*above, name))
        else:
            yield (*above, name), command


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    words, meaning = option.get_help_record(context) or ("", "")
    return f"`{words}`", prose(meaning)


def settings() -> Iterator[str]:
    """Every setting of a recipe by group: key, default, what is allowed, meaning and unit."""
    from maetrain.recipes.config import RunConfig

    yield from _group(RunConfig(), "")


def _group(model: BaseModel, above: str) -> Iterator[str]:
    fields = type(model).model_fields
    own = [name for name in fields if not isinstance(getattr(model, name), BaseModel)]
    if own:
        yield from (f"## {above or 'the recipe itself'}", "")
        values = model.model_dump(mode="json", include=set(own))
        rows = [(f"`{above}{'.' * bool(above)}{name}`", *_facts(fields[name], values[name])) for name in own]
        yield from _table(("setting", "default", "allowed", "meaning"), rows)
    for name in fields:
        if name not in own:
            yield from _group(getattr(model, name), f"{above}.{name}".lstrip("."))


def _facts(field: FieldInfo, value: Any) -> tuple[str, str, str]:
    default = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    bounds = [f"{_BOUNDS[kind]} {bound}" for kind, bound in _limits(field)]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"`{default}`", ", ".join(map(str, choices or bounds)), prose(field.description or "")


def _limits(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    for rule in field.metadata:
        for kind in _BOUNDS:
            if getattr(rule, kind, None) is not None:
                yield kind, getattr(rule, kind)


def modules(*packages: str) -> Iterator[str]:
    """The public classes and functions of the modules of each package, not of the packages below it."""
    for package in packages:
        for path in sorted((ROOT / package.replace(".", "/")).glob("[!_]*.py")):
            tree = ast.parse(path.read_text())
            yield from (f"## {package}.{path.stem}", "", prose(ast.get_docstring(tree) or ""), "")
            for node in tree.body:
                yield from _definition(node, "###")


def _definition(node: ast.stmt, heading: str) -> Iterator[str]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
        return
    yield from (f"{heading} {node.name}", "", "```python", _signature(node), "```", "")
    yield from (prose(ast.get_docstring(node) or ""), "")
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            yield from _definition(part, f"{heading}#")


def _signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """As in the source; of a class its bases and its fields, which pydantic and dataclasses make arguments of."""
    if isinstance(node, ast.ClassDef):
        bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        return "\n".join([f"class {node.name}{bases}:", *(f"    {_field(field)}" for field in fields)])
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    short = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(short) <= 100:
        return short
    return f"def {node.name}(\n    {ast.unparse(node.args)}\n){returns}"


def _field(field: ast.AnnAssign) -> str:
    """With its default, where that is a plain value."""
    text, value = f"{ast.unparse(field.target)}: {ast.unparse(field.annotation)}", field.value
    if isinstance(value, ast.Call):  # Field(default, ...)
        named = [keyword.value for keyword in value.keywords if keyword.arg == "default"]
        value = next(iter([*value.args[:1], *named]), None)
    return f"{text} = {ast.unparse(value)}" if isinstance(value, ast.Constant) else text


def prose(text: str) -> str:
    """A docstring as Markdown: what stands between backticks is code, and nothing else means anything but words."""
    parts = re.split(r"(`[^`]*`)", inspect.cleandoc(text))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[<>])", r"\\\1", part) for part in parts)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield from (_row(columns), _row(("---",) * len(columns)), *map(_row, rows), "")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
