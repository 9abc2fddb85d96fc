"""What a report is written from: a folder with scores.csv and, each optional, what else is known.

FOLDER/scores.csv, or FOLDER/report/scores.csv as a sweep leaves it
FOLDER/inputs.json           configuration, provenance, pictures, pretraining curve (`inputs`)
FOLDER/curves.csv            monitor curves (`curves`), also beside the scores; inputs.json's own come first
FOLDER/elsewhere/NAME.csv    scores of the same models on cases from another scanner or study
"""

from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import InputError
from maetrain.evaluate.scores import ScoreRow, read_scores
from maetrain.report.curves import read_curves
from maetrain.report.inputs import ReportInputs

SCORES, INPUTS, CURVES, ELSEWHERE = "scores.csv", "inputs.json", "curves.csv", "elsewhere"


@dataclass(frozen=True)
class Material:
    """elsewhere: name of the other set -> its rows."""

    rows: list[ScoreRow]
    inputs: ReportInputs
    elsewhere: dict[str, list[ScoreRow]]


def read_material(folder: Path) -> Material:
    """Raises InputError naming the file that is missing or garbled; only scores.csv may not be missing."""
    if folder.is_file():
        raise InputError(f"{folder}: give the folder that it lies in")
    path = next((place for place in (folder / SCORES, folder / "report" / SCORES) if place.is_file()), None)
    if path is None:
        raise InputError(f"{folder}: no {SCORES} there or in its report/; give a sweep's folder, or one with a table")
    rows = read_scores(path)
    if (folder / INPUTS).is_file():
        inputs = ReportInputs.load(folder / INPUTS)
    else:
        inputs = ReportInputs(test_subjects=len({row.subject for row in rows}))
    curves = next((p for p in (folder / CURVES, path.with_name(CURVES)) if p.is_file()), None)
    if curves and not inputs.curves:
        inputs = inputs.model_copy(update={"curves": read_curves(curves)})
    return Material(rows, inputs, {table.stem: read_scores(table) for table in _tables(folder / ELSEWHERE)})


def _tables(folder: Path) -> list[Path]:
    """Every CSV in it, but no litter such as ._NAME.csv."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.suffix.lower() == ".csv" and not path.name.startswith("."))
