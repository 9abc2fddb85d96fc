"""The numbers of the report as files, with every digit: one CSV a table, and summary.json.

An empty CSV cell (JSON: null) is an interval that doesn't exist, from one person or one seed; `inf` is what was never
reached: steps to the baseline's Dice, or a budget beyond the baseline's curve.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from maetrain.report.convergence import Convergence
from maetrain.report.labels_saved import LabelsSaved
from maetrain.report.results import Results
from maetrain.report.statistics import ArmPoint, BudgetComparison, ClassMean
from maetrain.report.verdict import verdict

# fields whose column has another name
_COLUMNS = {"class_name": "class", "mean": "mean_dice"}


def write_tables(out_dir: Path, results: Results) -> None:
    """budget_curve.csv, comparisons.csv, labels_saved.csv, classes.csv, convergence.csv, generalisation.csv."""
    arms = results.arms
    _write(out_dir / "budget_curve.csv", ArmPoint, results.points)
    _write(out_dir / "comparisons.csv", BudgetComparison, [c for one in arms for c in one.comparisons], verdicts=True)
    _write(out_dir / "labels_saved.csv", LabelsSaved, [s for one in arms for s in one.saved])
    _write(out_dir / "classes.csv", ClassMean, results.classes)
    _write(out_dir / "convergence.csv", Convergence, [c for one in arms for c in one.convergence])
    there = [(name, c) for one in arms for name, found in one.elsewhere.items() for c in found]
    _write(
        out_dir / "generalisation.csv",
        BudgetComparison,
        [c for _, c in there],
        verdicts=True,
        first=("set", [name for name, _ in there]),
    )


def write_summary(path: Path, results: Results, files: Iterable[str]) -> None:
    """files: names of the report's others, so that a later report knows what is its own to remove (`folder`)."""
    main, *others = results.arms
    summary = {
        "headline": results.headline,
        "baseline": results.baseline,
        "arm": main.arm,
        "comparisons": _judged(main.comparisons),
        "labels_saved": [asdict(s) for s in main.saved],
        "convergence": [asdict(c) for c in main.convergence],
        "other_arms": {one.arm: _judged(one.comparisons) for one in others if one.comparisons},
        "generalisation": {
            name: {one.arm: _judged(one.elsewhere[name]) for one in results.arms} for name in results.elsewhere
        },
        "test_subjects": results.num_test_subjects,
        "warnings": results.warnings,
        "files": sorted({*files, path.name}),
    }
    path.write_text(json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _judged(comparisons: Iterable[BudgetComparison]) -> list[dict[str, Any]]:
    return [{**asdict(c), "verdict": verdict(c)} for c in comparisons]


def _write(
    path: Path,
    kind: type,
    values: Sequence[Any],
    verdicts: bool = False,
    first: tuple[str, Sequence[str]] | None = None,
) -> None:
    """One row a value of the dataclass `kind`; `first`: name and cells of a column before its fields."""
    names = [field.name for field in fields(kind)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = [_COLUMNS.get(name, name) for name in names] + ["verdict"] * verdicts
        writer.writerow([*([first[0]] if first else []), *columns])
        for i, value in enumerate(values):
            cells = [_cell(getattr(value, name)) for name in names] + ([verdict(value)] if verdicts else [])
            writer.writerow([*([first[1][i]] if first else []), *cells])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value


def _plain(value: Any) -> Any:
    """The same value without NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else repr(value)
    return value
