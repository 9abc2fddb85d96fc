"""Writes the report: one self-contained index.html with its tables as scores.csv, summary.json and budget_curve.*

The page needs no network, no script and no font of its own: charts are inline SVG, pictures are data URIs, and a
content security policy forbids everything else. Frame and style are in page.html beside this file, what stands
inside the sections comes from sections.py.
"""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.report import figures, sections, verdict
from maetrain.report.inputs import ReportInputs
from maetrain.report.results import Results, analyse
from maetrain.report.statistics import ArmPoint
from maetrain.report.verdict import summary_rows

__all__ = ["analyse", "summary_rows", "write_report"]


def write_report(
    rows: Sequence[ScoreRow],
    inputs: ReportInputs,
    inputs_dir: Path,
    out_dir: Path,
    baseline: str = "scratch",
    arm: str = "mae",
) -> Path:
    """Write index.html, scores.csv, summary.json, budget_curve.png and budget_curve.csv; returns the page's path.

    inputs_dir: folder that picture paths are relative to. The page is written last, so where it is there, the
    rest is too.
    """
    results = analyse(rows, inputs, baseline, arm)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_scores(out_dir / "scores.csv", rows)
    summary = json.dumps(_plain(_summary(results, inputs)), indent=2, allow_nan=False)
    (out_dir / "summary.json").write_text(summary + "\n", encoding="utf-8")
    figures.budget_png(out_dir / "budget_curve.png", results.points, results.styles)
    _write_points(out_dir / "budget_curve.csv", results.points)
    page, temporary = out_dir / "index.html", out_dir / "index.html.tmp"
    temporary.write_text(_page(rows, results, inputs, inputs_dir), encoding="utf-8")
    os.replace(temporary, page)
    return page


def _page(rows: Sequence[ScoreRow], results: Results, inputs: ReportInputs, inputs_dir: Path) -> str:
    show = partial(sections.pictures, inputs.pictures, inputs_dir)
    parts: list[tuple[str, str, str]] = [
        ("efficiency", "Label efficiency", sections.efficiency_section(results)),
        ("convergence", "Convergence", sections.convergence_section(results, inputs.curves)),
        ("classes", "Scores per class", sections.classes_section(rows, results, inputs.tolerance_mm)),
        (
            "pretraining",
            "Pretraining and reconstructions",
            sections.pretraining_section(inputs) + show("reconstruction"),
        ),
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
        headline=escape(verdict.headline(results.comparisons)),
        facts=sections.facts(rows, inputs),
        navigation="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in parts),
        sections=sections.warnings_section(results.warnings, inputs.notes) + body,
        footer="The same numbers as files: scores.csv, summary.json, budget_curve.csv, budget_curve.png.",
    )


def _summary(results: Results, inputs: ReportInputs) -> dict[str, Any]:
    return {
        "headline": verdict.headline(results.comparisons),
        "comparisons": [{**asdict(c), "verdict": verdict.verdict(c)} for c in results.comparisons],
        "other_arms": {arm: [asdict(c) for c in found] for arm, found in results.other_arms.items()},
        "convergence": [asdict(c) for c in results.convergence],
        "test_subjects": inputs.test_subjects,
        "warnings": results.warnings,
    }


def _plain(value: Any) -> Any:
    """The same value with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_points(path: Path, points: Sequence[ArmPoint]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["budget", "arm", "mean_dice", "low", "high", "n_subjects", "n_seeds"])
        for p in points:
            low, high = ("" if math.isnan(v) else f"{v:.6f}" for v in (p.low, p.high))
            writer.writerow([p.budget, p.arm, f"{p.mean:.6f}", low, high, p.n_subjects, p.n_seeds])
