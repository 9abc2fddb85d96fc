"""Writes the report: one self-contained index.html, the same in Markdown, and every number and figure as a file.

The page needs no network, no script and no font of its own: charts are inline SVG, pictures are data URIs, and a
content security policy forbids everything else. Frame and style are in page.html beside this file, what stands
inside the sections comes from sections.py.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.report import content, markdown, pngs, sections, styles
from maetrain.report.curves import write_curves
from maetrain.report.files import write_summary, write_tables
from maetrain.report.inputs import ReportInputs
from maetrain.report.results import Results, analyse


def write_report(
    rows: Sequence[ScoreRow],
    inputs: ReportInputs,
    inputs_dir: Path,
    out_dir: Path,
    baseline: str = "scratch",
    arm: str | None = None,
    elsewhere: Mapping[str, Sequence[ScoreRow]] | None = None,
) -> Path:
    """Write index.html, report.md, scores.csv, curves.csv, the tables as CSV and JSON, the figures as PNG.

    inputs_dir: folder that picture paths are relative to. arm: the main one (`analyse` chooses for None). elsewhere:
    scores of the same models on other sets of cases. Returns the page's path; the page is written last, so where it is
    there, the rest is too.
    """
    results = analyse(rows, inputs, baseline, arm, elsewhere)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_scores(out_dir / "scores.csv", rows)
    write_curves(out_dir / "curves.csv", inputs.curves)
    write_tables(out_dir, results)
    write_summary(out_dir / "summary.json", results, inputs)
    _write_figures(out_dir, results, inputs)
    files = _copy_pictures(inputs, inputs_dir, out_dir)
    text = markdown.report_markdown(rows, results, inputs, files)
    (out_dir / "report.md").write_text(text, encoding="utf-8")
    page, temporary = out_dir / "index.html", out_dir / "index.html.tmp"
    temporary.write_text(_page(rows, results, inputs, inputs_dir), encoding="utf-8")
    os.replace(temporary, page)
    return page


def _page(rows: Sequence[ScoreRow], results: Results, inputs: ReportInputs, inputs_dir: Path) -> str:
    show = partial(sections.pictures, inputs.pictures, inputs_dir)
    pretraining = sections.pretraining_section(inputs) + show("reconstruction")
    parts: list[tuple[str, str, str]] = [
        ("efficiency", "Label efficiency", sections.efficiency_section(results)),
        ("saved", "Labels saved", sections.saved_section(results)),
        ("arms", "The other arms", sections.arms_section(results)),
        ("convergence", "Convergence", sections.convergence_section(results, inputs.curves)),
        ("elsewhere", "Elsewhere", sections.elsewhere_section(results)),
        ("classes", "Scores per class", sections.classes_section(results, inputs)),
        ("pretraining", "Pretraining and reconstructions", pretraining),
        ("overlays", "Segmentations", show("overlay")),
        ("method", "How it was measured", sections.method_section(results, inputs)),
        ("quarantine", "Quarantine", sections.quarantine_section(inputs)),
        ("configuration", "Configuration", sections.configuration_section(inputs)),
        ("provenance", "Provenance", sections.provenance_section(inputs)),
    ]
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>\n{inside}</section>'
        for key, title, inside in parts
    )
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(inputs.title),
        headline=escape(results.headline),
        facts=sections.facts(rows, inputs),
        navigation="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in parts),
        sections=sections.warnings_section(results.warnings, inputs.notes) + body,
        footer=content.FILES,
        light=styles.css_colours(styles.LIGHT),
        dark=styles.css_colours(styles.DARK),
        arm_rules=styles.css_rules(),
    )


def _write_figures(out_dir: Path, results: Results, inputs: ReportInputs) -> None:
    pngs.budget_png(out_dir / markdown.BUDGET, results.points, results.styles)
    by_arm = {one.arm: one.comparisons for one in results.arms if one.comparisons}
    if by_arm:
        pngs.difference_png(out_dir / markdown.DIFFERENCE, by_arm, results.baseline, results.styles)
    if inputs.curves:
        pngs.convergence_png(out_dir / markdown.CONVERGENCE, inputs.curves, results.styles)
    if inputs.pretrain_curve.steps:
        pngs.pretrain_png(out_dir / markdown.PRETRAINING, inputs.pretrain_curve)


def _copy_pictures(inputs: ReportInputs, folder: Path, out_dir: Path) -> dict[str, str]:
    """Pictures beside report.md, under names of our own: path in the inputs -> file there."""
    files = {}
    for i, picture in enumerate(inputs.pictures, start=1):
        path = folder / picture.path
        if path.suffix.lower() in sections.PICTURE_TYPES and path.is_file():
            files[picture.path] = f"picture-{i:02d}{path.suffix.lower()}"
            shutil.copyfile(path, out_dir / files[picture.path])
    return files
