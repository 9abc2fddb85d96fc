"""report.md: the page's headline, tables and sentences in Markdown, its figures as links to PNG files beside it.

What comes from data is escaped, so that a name is shown as it is, on a server that allows HTML in Markdown, too.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape

from maetrain.evaluate.scores import ScoreRow
from maetrain.report import content
from maetrain.report.inputs import ReportInputs
from maetrain.report.results import Results
from maetrain.report.tables import (
    Table,
    classes_table,
    comparison_table,
    convergence_table,
    quarantine_table,
    saved_table,
)
from maetrain.report.verdict import CONTROL, control_sentence

BUDGET, DIFFERENCE, CONVERGENCE, PRETRAINING = (
    f"{name}.png" for name in ("budget_curve", "difference", "convergence", "pretraining")
)


def report_markdown(
    rows: Sequence[ScoreRow], results: Results, inputs: ReportInputs, pictures: Mapping[str, str]
) -> str:
    """The whole file. pictures: path in the inputs -> file beside report.md, of those that are there."""
    say = _text
    parts = [f"# {say(inputs.title)}", f"**{say(results.headline)}**"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in content.facts(rows, inputs)))
    if told := (*results.warnings, *inputs.notes):
        parts += [f"## {content.CAUTIONS}", "\n".join(f"- {say(text)}" for text in told)]
    bodies = {
        "efficiency": _efficiency(results),
        "saved": _saved(results),
        "arms": _other_arms(results),
        "convergence": _convergence(results, inputs),
        "elsewhere": _elsewhere(results),
        "classes": [_table(classes_table(results, inputs))],
        "pretraining": _pretraining(inputs) + _pictures(inputs, "reconstruction", pictures),
        "overlays": _pictures(inputs, "overlay", pictures),
        "method": list(map(say, content.method(results, inputs))),
        "quarantine": [_table(quarantine_table(inputs)) if inputs.quarantined else content.NO_QUARANTINE],
        "configuration": [_fenced(inputs.config_yaml) if inputs.config_yaml.strip() else content.NO_CONFIGURATION],
        "provenance": ["\n".join(_facts(inputs)) or content.NO_PROVENANCE],
    }
    for key, title in content.SECTIONS.items():
        parts += [f"## {title}", *bodies[key]]
    return "\n\n".join([*parts, content.FILES]) + "\n"


def _efficiency(results: Results) -> list[str]:
    curve = _image("mean Dice against labelled persons, one line an arm", BUDGET)
    if not results.comparisons:
        return [curve, content.NO_COMPARISON]
    difference = _image("difference from the baseline with its interval", DIFFERENCE)
    return [curve, difference, _table(comparison_table(results.comparisons)), _text(content.COMPARED)]


def _saved(results: Results) -> list[str]:
    tables = [_table(saved_table(one)) for one in results.arms if one.saved]
    return [_text(content.SAVED), *tables] if tables else [content.NO_SAVING]


def _other_arms(results: Results) -> list[str]:
    parts = []
    for one in results.arms[1:]:
        if one.comparisons:
            said = [_text(control_sentence(one.comparisons))] if one.arm == CONTROL else []
            parts += [f"### {_text(one.arm)}", *said, _table(comparison_table(one.comparisons))]
    return [_text(content.COMPARED), *parts] if parts else [content.NO_OTHER_ARM]


def _elsewhere(results: Results) -> list[str]:
    if not results.elsewhere:
        return [content.NO_SET]
    parts = [_text(content.ELSEWHERE)]
    for name in results.elsewhere:
        found = [_table(comparison_table(one.elsewhere[name], name)) for one in results.arms if one.elsewhere[name]]
        parts += [f"### {_text(name)}", *(found or [content.NO_COMPARISON])]
    return parts


def _convergence(results: Results, inputs: ReportInputs) -> list[str]:
    if not inputs.curves:
        return [content.NO_CURVE]
    table = [_table(convergence_table(results))] if any(one.convergence for one in results.arms) else []
    return [_text(content.CONVERGENCE), _image("validation Dice against optimizer steps", CONVERGENCE), *table]


def _pretraining(inputs: ReportInputs) -> list[str]:
    return [_image("loss of the pretraining", PRETRAINING) if inputs.pretrain_curve.steps else content.NO_PRETRAINING]


def _facts(inputs: ReportInputs) -> list[str]:
    return [f"- {_text(key)}: {_text(value)}" for key, value in inputs.provenance.items()]


def _pictures(inputs: ReportInputs, kind: str, files: Mapping[str, str]) -> list[str]:
    shown = [
        _image(p.caption, files[p.path]) if p.path in files else f"Picture not found: {_text(p.path)}"
        for p in inputs.pictures
        if p.kind == kind
    ]
    return shown or [content.NO_PICTURE]


def _image(text: str, file: str) -> str:
    return f"![{_text(text)}]({file})"


def _table(table: Table) -> str:
    """The caption and a table; a group becomes a first column, a heading over columns a word in each of theirs."""
    columns = list(table.columns)
    if table.over:
        over = [name for name, n in table.over for _ in range(n)]
        columns[1:] = [f"{name}, {column}" for name, column in zip(over, columns[1:], strict=True)]
    rows = [list(row) for row in table.rows]
    words = set(table.text_columns) | {0}
    if table.groups:
        columns = ["", *columns]
        rows = [[group, *row] for group, row in zip(table.groups, rows, strict=True)]
        words = {0} | {i + 1 for i in words}
    ruler = [":--" if i in words else "--:" for i in range(len(columns))]
    lines = [map(_text, columns), ruler, *(map(_text, row) for row in rows)]
    return f"{_text(table.caption)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    longest = max([len(run) for run in re.findall(r"`+", text)], default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def _text(text: str) -> str:
    """The text on one line with nothing left that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", escape(" ".join(text.split()), quote=False))
