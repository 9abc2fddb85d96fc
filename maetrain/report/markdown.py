"""report.md: the page's headline, tables and sentences in Markdown, its figures as links to PNG files beside it.

What comes from data is escaped, so that a name is shown as it is, on a server that allows HTML in Markdown, too.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape

from maetrain.evaluate.scores import ScoreRow
from maetrain.report import content
from maetrain.report.inputs import Picture, ReportInputs
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
        parts += ["## Read with care", "\n".join(f"- {say(text)}" for text in told)]
    parts += ["## Label efficiency", _image("mean Dice against labelled persons, one line an arm", BUDGET)]
    if results.comparisons:
        parts += [_image("difference from the baseline with its interval", DIFFERENCE)]
        parts += [_table(comparison_table(results.comparisons)), _text(content.COMPARED)]
    else:
        parts += [content.NO_COMPARISON]
    saved = [_table(saved_table(one)) for one in results.arms if one.saved]
    parts += ["## Labels saved", *([_text(content.SAVED), *saved] if saved else [content.NO_SAVING])]
    parts += ["## The other arms", *_other_arms(results)]
    parts += ["## Convergence"]
    if inputs.curves:
        parts += [say(content.CONVERGENCE), _image("validation Dice against optimizer steps", CONVERGENCE)]
        parts += [_table(convergence_table(results))] if any(one.convergence for one in results.arms) else []
    else:
        parts += [content.NO_CURVE]
    parts += ["## Elsewhere", *_elsewhere(results)]
    parts += ["## Scores per class", _table(classes_table(results, inputs))]
    parts += ["## Pretraining and reconstructions"]
    parts += [_image("loss of the pretraining", PRETRAINING) if inputs.pretrain_curve.steps else content.NO_PRETRAINING]
    parts += _pictures([p for p in inputs.pictures if p.kind == "reconstruction"], pictures)
    parts += ["## Segmentations", *_pictures([p for p in inputs.pictures if p.kind == "overlay"], pictures)]
    parts += ["## How it was measured", *map(say, content.method(results, inputs))]
    parts += ["## Quarantine", _table(quarantine_table(inputs)) if inputs.quarantined else content.NO_QUARANTINE]
    parts += ["## Configuration", _fenced(inputs.config_yaml) if inputs.config_yaml else content.NO_CONFIGURATION]
    facts = "\n".join(f"- {say(key)}: {say(value)}" for key, value in inputs.provenance.items())
    return "\n\n".join([*parts, "## Provenance", facts or content.NO_PROVENANCE, content.FILES]) + "\n"


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


def _pictures(pictures: Sequence[Picture], files: Mapping[str, str]) -> list[str]:
    shown = [
        _image(p.caption, files[p.path]) if p.path in files else f"Picture not found: {_text(p.path)}" for p in pictures
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
