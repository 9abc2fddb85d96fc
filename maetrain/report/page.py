"""Writes the report: one self-contained index.html, the same in Markdown, and every number and figure as a file.

The page needs no network, no script and no font of its own: charts are inline SVG, pictures are data URIs, and a
content security policy forbids everything else. Frame and style are in page.html beside this file, what stands
inside the sections comes from sections.py.
"""

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.report import content, markdown, pngs, sections, styles
from maetrain.report.curves import write_curves
from maetrain.report.files import write_summary, write_tables
from maetrain.report.folder import PAGE, SUMMARY, replace_report
from maetrain.report.inputs import ReportInputs
from maetrain.report.material import CURVES, SCORES
from maetrain.report.results import Results


def write_report(
    rows: Sequence[ScoreRow], inputs: ReportInputs, results: Results, inputs_dir: Path, out_dir: Path
) -> Path:
    """Write index.html, report.md, scores.csv, curves.csv, the tables as CSV and JSON, the figures as PNG.

    results: what `analyse` made of the same rows and inputs. inputs_dir: folder that picture paths are relative to.
    Returns the page's path. All of it is made before the first file is replaced, so an error leaves an earlier report
    as it was; the page is replaced last, so where it is there, the rest is too.
    """
    with tempfile.TemporaryDirectory(prefix="maetrain-") as folder:
        staged = Path(folder)
        write_scores(staged / SCORES, rows)
        write_curves(staged / CURVES, inputs.curves)
        write_tables(staged, results)
        _write_figures(staged, results, inputs)
        pictures = _copy_pictures(inputs, inputs_dir, staged)
        text = markdown.report_markdown(rows, results, inputs, pictures)
        (staged / "report.md").write_text(text, encoding="utf-8")
        (staged / PAGE).write_text(_page(rows, results, inputs, inputs_dir), encoding="utf-8")
        write_summary(staged / SUMMARY, results, [path.name for path in staged.iterdir()])
        return replace_report(staged, out_dir)


def _page(rows: Sequence[ScoreRow], results: Results, inputs: ReportInputs, inputs_dir: Path) -> str:
    show = partial(sections.pictures, inputs.pictures, inputs_dir)
    insides = {
        "efficiency": sections.efficiency_section(results),
        "saved": sections.saved_section(results),
        "arms": sections.arms_section(results),
        "convergence": sections.convergence_section(results, inputs.curves),
        "elsewhere": sections.elsewhere_section(results),
        "classes": sections.classes_section(results, inputs),
        "pretraining": sections.pretraining_section(inputs) + show("reconstruction"),
        "overlays": show("overlay"),
        "method": sections.method_section(results, inputs),
        "quarantine": sections.quarantine_section(inputs),
        "configuration": sections.configuration_section(inputs),
        "provenance": sections.provenance_section(inputs),
    }
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>\n{insides[key]}</section>'
        for key, title in content.SECTIONS.items()
    )
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(inputs.title),
        headline=escape(results.headline),
        facts=sections.facts(rows, inputs),
        navigation="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in content.SECTIONS.items()),
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
