"""The sections of the page, each a function from results to the HTML inside one <section>.

Whatever comes from data (names of cases, classes, arms; captions; reasons) goes through `escape` here. A section
without material says so in a sentence instead of vanishing, so that a reader sees what was not recorded.
"""

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.evaluate.scores import ScoreRow
from maetrain.report import figures, verdict
from maetrain.report.inputs import Curve, Picture, ReportInputs
from maetrain.report.results import Results
from maetrain.report.statistics import NUM_RESAMPLES, BudgetComparison, mean_curve, per_class_table

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def facts(rows: Sequence[ScoreRow], inputs: ReportInputs) -> str:
    facts = [
        ("test persons", inputs.test_subjects),
        ("test scans scored", len({row.case for row in rows})),
        ("label budgets", len({row.budget for row in rows})),
        ("seeds", len({row.seed for row in rows})),
        ("volumes in the pretraining pool", inputs.pool_volumes),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def warnings_section(warnings: Sequence[str], notes: Sequence[str]) -> str:
    if not (warnings or notes):
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in (*warnings, *notes))
    return (
        '<section class="warnings" id="limits" aria-labelledby="limits-title">'
        f'<h2 id="limits-title">Read with care</h2><ul>{items}</ul></section>\n'
    )


def efficiency_section(results: Results) -> str:
    charts = [
        ("How well each arm segments the test persons.", figures.budget_chart(results.points, results.styles)),
        ("What pretraining adds, paired by person and seed.", figures.difference_chart(results.comparisons)),
    ]
    drawn = "".join(_figure(svg, caption) for caption, svg in charts if svg)
    parts = [_legend(results.styles), f'<div class="pair">{drawn}</div>']
    if results.comparisons:
        parts.append(_comparison_table(results.comparisons))
    else:
        parts.append("<p>No test case was scored by both arms with the same budget and seed.</p>")
    parts += [_comparison_table(found) for found in results.other_arms.values()]
    return "".join(parts)


def _comparison_table(comparisons: Sequence[BudgetComparison]) -> str:
    baseline, arm = escape(comparisons[0].baseline_arm), escape(comparisons[0].arm)
    caption = (
        f"Mean Dice over the foreground classes, {arm} against {baseline}. Difference with its 95 % interval "
        "and Wilcoxon signed-rank p, corrected over the budgets (Holm)."
    )
    header = ["labelled persons", baseline, arm, "difference", "95 % interval", "p (Holm)", "test persons", "seeds"]
    body = []
    for c in comparisons:
        word = verdict.verdict(c)
        cells = [
            f"{c.baseline_mean:.3f}", f"{c.arm_mean:.3f}", verdict.signed(c.difference), verdict.interval_text(c),
            escape(verdict.p_text(c.p_holm)), str(c.n_subjects), str(c.n_seeds),
        ]  # fmt: skip
        mark = " yes" if word in (verdict.HELPS, verdict.HURTS) else ""
        body.append(_row(str(c.budget), cells, f'<td class="text{mark}">{word}</td>'))
    head = "".join(f'<th scope="col">{name}</th>' for name in header) + '<th scope="col" class="text">verdict</th>'
    return _table(caption, f"<tr>{head}</tr>", f"<tbody>{''.join(body)}</tbody>")


def convergence_section(results: Results, curves: Sequence[Curve]) -> str:
    drawn = []
    for budget in sorted({curve.budget for curve in curves}):
        series = []
        for name, style in results.styles.items():
            own = [c for c in curves if c.budget == budget and c.arm == name and c.steps]
            if len(own) > 1:
                faint = [figures.Series(name, style, c.steps, c.dice, has_markers=False, is_faint=True) for c in own]
                series += faint
            if own:
                steps, dice = mean_curve(own)
                series.append(figures.Series(name, style, steps.tolist(), dice.tolist()))
        marks = [(c.target_dice, f"final {results.baseline}") for c in results.convergence if c.budget == budget]
        text = f"Validation Dice against optimizer steps with {verdict.persons([budget])}"
        svg = figures.line_chart(
            series, text, "optimizer steps", "validation Dice", y_limits=(0.0, 1.0), size=(400, 260), marks=marks
        )
        if svg:
            drawn.append(_figure(svg, f"{verdict.persons([budget])[0].upper()}{verdict.persons([budget])[1:]}."))
    if not drawn:
        return "<p>No validation curve was recorded.</p>"
    lead = '<p class="lead">Validation Dice on the way: bold the mean over seeds, thin each seed.</p>'
    grid = "pair" if len(drawn) in (2, 4) else "trio"
    table = _convergence_table(results) if results.convergence else ""
    return f'{lead}{_legend(results.styles)}<div class="{grid}">{"".join(drawn)}</div>{table}'


def _convergence_table(results: Results) -> str:
    baseline, arm = escape(results.baseline), escape(results.arm)
    caption = (
        f"Steps after which the mean curve first reaches {baseline}&#x27;s final validation Dice. Ratio: {arm} over "
        f"{baseline}; 0.50 means half the steps."
    )
    header = ["labelled persons", "Dice to reach", f"steps, {baseline}", f"steps, {arm}", "ratio", "seeds"]
    body = []
    for c in results.convergence:
        steps = "not reached" if c.arm_steps is None else f"{c.arm_steps:.0f}"
        ratio = "\N{EN DASH}" if c.ratio is None else f"{c.ratio:.2f}"
        body.append(
            _row(str(c.budget), [f"{c.target_dice:.3f}", f"{c.baseline_steps:.0f}", steps, ratio, str(c.n_seeds)])
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    return _table(caption, f"<tr>{head}</tr>", f"<tbody>{''.join(body)}</tbody>")


def classes_section(rows: Sequence[ScoreRow], results: Results, tolerance_mm: float) -> str:
    table = {(m.budget, m.arm, m.class_name): m for m in per_class_table(rows)}
    arms = [name for name in results.styles if any(arm == name for _, arm, _ in table)]
    classes = list(dict.fromkeys(name for _, _, name in table))
    scores: list[tuple[str, Callable[[Any], str]]] = [
        ("Dice", lambda m: f"{m.dice:.3f}"),
        ("HD95, mm", lambda m: f"{m.hd95_mm:.2f}"),
        (f"surface Dice at {tolerance_mm:g} mm", lambda m: f"{m.surface_dice:.3f}"),
    ]
    over = "".join(f'<th scope="colgroup" colspan="{len(arms)}" class="span">{name}</th>' for name, _ in scores)
    under = "".join(f'<th scope="col">{escape(arm)}</th>' for _ in scores for arm in arms)
    bodies = []
    for budget in sorted({budget for budget, _, _ in table}):
        group = f'<tr><th scope="rowgroup" class="group" colspan="{1 + len(arms) * len(scores)}">'
        lines = [f"{group}{verdict.persons([budget])}</th></tr>"]
        for name in classes:
            means = [table.get((budget, arm, name)) for arm in arms]
            cells = [text(mean) if mean else "\N{EN DASH}" for _, text in scores for mean in means]
            lines.append(_row(escape(name), cells))
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    caption = "Means over test persons and seeds, whole volumes in the image&#x27;s own spacing. HD95: lower is better."
    head = f'<tr><th scope="col" rowspan="2">class</th>{over}</tr><tr>{under}</tr>'
    return _table(caption, head, "".join(bodies)) + f'<p class="note">{escape(EMPTY_MASK_RULE)}</p>'


def pretraining_section(inputs: ReportInputs) -> str:
    charts = figures.pretrain_charts(inputs.pretrain_curve)
    if not charts:
        return "<p>No pretraining curve was recorded.</p>"
    return f'<div class="trio">{"".join(_figure(svg) for svg in charts)}</div>'


def pictures(pictures: Sequence[Picture], folder: Path, kind: str) -> str:
    own = [picture for picture in pictures if picture.kind == kind]
    if not own:
        return "<p>No picture was recorded.</p>"
    shown = []
    for picture in own:
        path, caption = folder / picture.path, escape(picture.caption, quote=True)
        mime = _MIME.get(path.suffix.lower())
        if mime and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            inside = f'<img src="data:{mime};base64,{data}" alt="{caption}">'
        else:  # a lost picture is no reason to lose the numbers
            inside = f"<p>Picture not found: {escape(picture.path)}</p>"
        shown.append(f"<figure>{inside}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(shown)}</div>'


def method_section(results: Results, inputs: ReportInputs) -> str:
    if inputs.overlap is None:
        overlap = "The overlap of test persons and pretraining pool was not checked."
    else:
        overlap = (
            f"Overlap of test persons and pretraining pool, as checked: {inputs.overlap.by_person} by person, "
            f"{inputs.overlap.by_voxel_hash} by voxel hash."
        )
    baseline, arm = escape(results.baseline), escape(results.arm)
    texts = [
        "Test persons are set apart by person, never by scan, before pretraining, training, tuning and the choice of "
        f"a model. {overlap}",
        "The value of a case is its mean Dice over the foreground classes, that of a person the mean over his or her "
        f"cases. Arms are paired by case and seed: the difference is {arm} minus {baseline} for the same person, "
        "budget and seed.",
        f"The 95 % interval is a two-level bootstrap: {NUM_RESAMPLES} resamples of persons, then of seeds. A drawn "
        "seed holds for all persons, as one seed is one pair of trained models. The p value is a two-sided Wilcoxon "
        "signed-rank test over the persons&#x27; mean differences, corrected over the budgets by Holm&#x27;s method.",
        "A difference counts as real when its interval excludes zero and its corrected p is below "
        f"{verdict.ALPHA:g}; an interval that excludes zero without such a p is called unconfirmed.",
    ]
    return "".join(f"<p>{text}</p>" for text in texts)


def quarantine_section(inputs: ReportInputs) -> str:
    if not inputs.quarantined:
        return "<p>No scan was left out.</p>"
    cells = "".join(f'<th scope="col" class="text">{name}</th>' for name in ("case", "file", "reason"))
    body = "".join(
        f'<tr><th scope="row">{escape(q.case)}</th><td class="text">{escape(q.path)}</td>'
        f'<td class="text">{escape(q.reason)}</td></tr>'
        for q in inputs.quarantined
    )
    return _table(
        "Scans that could not be used, and why.", f"<tr>{cells}</tr>", f"<tbody>{body}</tbody>", "scroll wrapped"
    )


def configuration_section(inputs: ReportInputs) -> str:
    if not inputs.config_yaml.strip():
        return "<p>No configuration was recorded.</p>"
    text = f'<pre tabindex="0">{escape(inputs.config_yaml)}</pre>'
    return f"<details><summary>The full resolved configuration</summary>{text}</details>"


def provenance_section(inputs: ReportInputs) -> str:
    if not inputs.provenance:
        return "<p>No provenance was recorded.</p>"
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in inputs.provenance.items())
    return f'<dl class="list">{items}</dl>'


def _legend(styles: dict[str, int]) -> str:
    items = []
    for name, style in styles.items():
        slot = style % len(figures.MARKERS)
        mark = figures.marker(figures.MARKERS[slot], 19, 6)
        sample = f'<g class="c{slot}"><path class="line" d="M0 6H38"/>{mark}</g>'
        swatch = f'<svg class="chart" style="display:inline" viewBox="0 0 38 12" aria-hidden="true">{sample}</svg>'
        items.append(f"<li>{swatch}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(svg: str, caption: str = "") -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{text}</figure>"


def _row(head: str, cells: Sequence[str], last: str = "") -> str:
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}{last}</tr>'


def _table(caption: str, head: str, bodies: str, kind: str = "scroll") -> str:
    """A table that scrolls sideways on a narrow screen, also by keyboard."""
    table = f"<table><caption><span>{caption}</span></caption><thead>{head}</thead>{bodies}</table>"
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{caption}">{table}</div>'
