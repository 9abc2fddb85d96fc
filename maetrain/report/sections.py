"""The sections of the page, each a function from results to the HTML inside one <section>.

Whatever comes from data (names of cases, classes, arms; captions; reasons) goes through `escape` here. A section
without material says so in a sentence instead of vanishing, so that a reader sees what was not recorded.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from maetrain.evaluate.scores import ScoreRow
from maetrain.report import content, figures, styles
from maetrain.report.inputs import Curve, Picture, ReportInputs
from maetrain.report.results import Results
from maetrain.report.tables import (
    Table,
    classes_table,
    comparison_table,
    convergence_table,
    quarantine_table,
    saved_table,
)
from maetrain.report.verdict import CONTROL, HELPS, HURTS, control_sentence
from maetrain.report.wording import persons

PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def facts(rows: Sequence[ScoreRow], inputs: ReportInputs) -> str:
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in content.facts(rows, inputs))


def warnings_section(warnings: Sequence[str], notes: Sequence[str]) -> str:
    if not (warnings or notes):
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in (*warnings, *notes))
    return (
        '<section class="warnings" id="limits" aria-labelledby="limits-title">'
        f'<h2 id="limits-title">{content.CAUTIONS}</h2><ul>{items}</ul></section>\n'
    )


def efficiency_section(results: Results) -> str:
    by_arm = {one.arm: one.comparisons for one in results.arms if one.comparisons}
    height = figures.difference_height(by_arm)
    charts = [
        ("How well each arm segments the test persons.", figures.budget_chart(results.points, results.styles, height)),
        ("What an arm adds, paired by person and seed.", figures.difference_chart(by_arm, results.styles)),
    ]
    drawn = "".join(_figure(svg, caption) for caption, svg in charts if svg)
    told = f'{_legend(results.styles)}<div class="pair">{drawn}</div>'
    if not results.comparisons:
        return told + _p(content.NO_COMPARISON)
    return f"{told}{_table(comparison_table(results.comparisons))}{_note(content.COMPARED)}"


def saved_section(results: Results) -> str:
    tables = "".join(_table(saved_table(one)) for one in results.arms if one.saved)
    return _note(content.SAVED) + tables if tables else _p(content.NO_SAVING)


def arms_section(results: Results) -> str:
    parts = []
    for one in results.arms[1:]:
        if one.comparisons:
            said = _p(control_sentence(one.comparisons)) if one.arm == CONTROL else ""
            parts.append(f"<h3>{escape(one.arm)}</h3>{said}{_table(comparison_table(one.comparisons))}")
    return _note(content.COMPARED) + "".join(parts) if parts else _p(content.NO_OTHER_ARM)


def convergence_section(results: Results, curves: Sequence[Curve]) -> str:
    found = [c for one in results.arms for c in one.convergence]
    drawn = []
    for budget in sorted({curve.budget for curve in curves}):
        if svg := figures.convergence_chart(budget, curves, found, results.styles):
            drawn.append(_figure(svg, f"{persons([budget])[0].upper()}{persons([budget])[1:]}."))
    if not drawn:
        return _p(content.NO_CURVE)
    grid = "pair" if len(drawn) in (2, 4) else "trio"
    table = _table(convergence_table(results)) if found else ""
    return f'{_note(content.CONVERGENCE)}{_legend(results.styles)}<div class="{grid}">{"".join(drawn)}</div>{table}'


def elsewhere_section(results: Results) -> str:
    if not results.elsewhere:
        return _p(content.NO_SET)
    parts = [_note(content.ELSEWHERE)]
    for name in results.elsewhere:
        tables = [_table(comparison_table(one.elsewhere[name], name)) for one in results.arms if one.elsewhere[name]]
        parts.append(f"<h3>{escape(name)}</h3>{''.join(tables) or _p(content.NO_COMPARISON)}")
    return "".join(parts)


def classes_section(results: Results, inputs: ReportInputs) -> str:
    return _table(classes_table(results, inputs))


def pretraining_section(inputs: ReportInputs) -> str:
    charts = figures.pretrain_charts(inputs.pretrain_curve)
    if not charts:
        return _p(content.NO_PRETRAINING)
    return f'<div class="trio">{"".join(_figure(svg) for svg in charts)}</div>'


def pictures(pictures: Sequence[Picture], folder: Path, kind: str) -> str:
    own = [picture for picture in pictures if picture.kind == kind]
    if not own:
        return _p(content.NO_PICTURE)
    shown = []
    for picture in own:
        path, caption = folder / picture.path, escape(picture.caption, quote=True)
        mime = PICTURE_TYPES.get(path.suffix.lower())
        if mime and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            inside = f'<img src="data:{mime};base64,{data}" alt="{caption}">'
        else:  # a lost picture is no reason to lose the numbers
            inside = f"<p>Picture not found: {escape(picture.path)}</p>"
        shown.append(f"<figure>{inside}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(shown)}</div>'


def method_section(results: Results, inputs: ReportInputs) -> str:
    return "".join(map(_p, content.method(results, inputs)))


def quarantine_section(inputs: ReportInputs) -> str:
    return _table(quarantine_table(inputs), "scroll wrapped") if inputs.quarantined else _p(content.NO_QUARANTINE)


def configuration_section(inputs: ReportInputs) -> str:
    if not inputs.config_yaml.strip():
        return _p(content.NO_CONFIGURATION)
    text = f'<pre tabindex="0">{escape(inputs.config_yaml)}</pre>'
    return f"<details><summary>The full resolved configuration</summary>{text}</details>"


def provenance_section(inputs: ReportInputs) -> str:
    if not inputs.provenance:
        return _p(content.NO_PROVENANCE)
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in inputs.provenance.items())
    return f'<dl class="list">{items}</dl>'


def _p(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _legend(arms: Mapping[str, int]) -> str:
    items = []
    for name, style in arms.items():
        mark = figures.marker(styles.marker_name(style), 19, 6)
        sample = f'<g class="{styles.css_class(style)}"><path class="line" d="M0 6H38"/>{mark}</g>'
        swatch = f'<svg class="chart" viewBox="0 0 38 12" aria-hidden="true">{sample}</svg>'
        items.append(f"<li>{swatch}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(svg: str, caption: str = "") -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{text}</figure>"


def _table(table: Table, kind: str = "scroll") -> str:
    """A table that scrolls sideways on a narrow screen, also by keyboard."""
    caption = escape(table.caption)
    words = set(table.text_columns)
    heads = [
        f'<th scope="col"{" class=text" if i in words else ""}>{escape(name)}</th>'
        for i, name in enumerate(table.columns)
    ]
    head = f"<tr>{''.join(heads)}</tr>"
    if table.over:
        first = heads[0].replace("<th", '<th rowspan="2"')
        over = "".join(f'<th scope="colgroup" colspan="{n}" class="span">{escape(name)}</th>' for name, n in table.over)
        head = f"<tr>{first}{over}</tr><tr>{''.join(heads[1:])}</tr>"
    groups = table.groups or ("",) * len(table.rows)
    bodies = []
    for title, lines in groupby(zip(groups, table.rows, strict=True), key=lambda line: line[0]):
        span = f'<tr><th scope="rowgroup" class="group" colspan="{len(table.columns)}">{escape(title)}</th></tr>'
        bodies.append(f"<tbody>{span if title else ''}{''.join(_row(row, words) for _, row in lines)}</tbody>")
    inside = f"<table><caption><span>{caption}</span></caption><thead>{head}</thead>{''.join(bodies)}</table>"
    label = caption.partition(".")[0].partition(":")[0]
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{label}">{inside}</div>'


def _row(row: Sequence[str], words: set[int]) -> str:
    cells = []
    for i, cell in enumerate(row[1:], start=1):
        kind = "" if i not in words else ' class="text yes"' if cell in (HELPS, HURTS) else ' class="text"'
        cells.append(f"<td{kind}>{escape(cell)}</td>")
    return f'<tr><th scope="row">{escape(row[0])}</th>{"".join(cells)}</tr>'
