"""`maetrain evaluate` and `maetrain report`: scores, made and read, without Ray."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.console import say, show_table
from data_shards.archive.identity import PrivacyConfig, read_identity
from data_shards.archive.layout import Archive, ArchiveCase, read_archive
from data_shards.errors import InputError
from data_shards.labels import Labels
from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.predictions import find_predictions, score_predictions
from maetrain.evaluate.scores import ScoreRow, job_text, read_scores, write_scores
from maetrain.evaluate.study import read_study
from maetrain.evaluate.test_set import score_scans
from maetrain.report.material import INPUTS, read_material
from maetrain.report.page import write_report
from maetrain.report.results import analyse


def run_evaluate_verb(
    model: Path,
    archive_root: Path,
    out: Path,
    subjects: Sequence[str] | None,
    privacy: PrivacyConfig,
    tolerance_mm: float,
) -> None:
    network, contract = load_model(model)
    _check_out(out, contract.job)
    archive, cases = _labelled_cases(archive_root, subjects, privacy)
    if archive.labels != contract.labels:
        raise InputError(
            f"{archive_root}: its classes are {list(archive.class_names)}, the model's {list(contract.class_names)}: "
            "scores would compare unlike things; give an archive with the model's classes, in their order"
        )
    if archive.channel_names != contract.channel_names:
        raise InputError(
            f"{archive_root}: its channels are {list(archive.channel_names)}, the model's "
            f"{list(contract.channel_names)}: give an archive with the same ones, in their order, or rename them in "
            "its dataset.json"
        )
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    scans = read_study(cases, len(contract.class_names))
    if trained := [case.case for case in cases if scans.voxel_sha256[case.case] in contract.trained_on]:
        say(
            f"{len(trained)} of these scans trained the model, for one {trained[0]}: "
            "their scores say nothing about new persons"
        )
    sources = scans.sources(contract.labels, contract.preprocess)
    scores = score_scans(network, sources, contract.labels, contract.window_DHW, tolerance_mm)
    _write_table(out, [ScoreRow.of(score, *contract.job) for score in scores], contract.labels)


def run_predictions_verb(
    folder: Path,
    archive_root: Path,
    out: Path,
    subjects: Sequence[str] | None,
    privacy: PrivacyConfig,
    tolerance_mm: float,
    job: tuple[int, str, int],
) -> None:
    """`job`: what the rows say of budget, arm and seed; the files can't tell."""
    _check_out(out, job)
    archive, cases = _labelled_cases(archive_root, subjects, privacy)
    if len(archive.class_names) < 2:
        raise InputError(f"{archive_root}: no classes are named; add a dataset.json with labels")
    files = find_predictions(folder, cases)
    scores = score_predictions(files, cases, archive.labels, tolerance_mm)
    _write_table(out, [ScoreRow.of(score, *job) for score in scores], archive.labels)


def _labelled_cases(
    root: Path, subjects: Sequence[str] | None, privacy: PrivacyConfig
) -> tuple[Archive, list[ArchiveCase]]:
    """The archive, and its labelled cases of `subjects` (None: of all)."""
    archive = read_archive(root, read_identity(privacy, os.environ))
    labelled = [case for case in archive.cases if case.label_path is not None]
    if not labelled:
        raise InputError(f"{root}: no labelled case to score; labels belong into labelsTr")
    known = {case.subject for case in labelled}
    if unknown := sorted({*(subjects or ())} - known):
        raise InputError(
            f"--subjects: no person {unknown[0]!r} with a label in {root}; {len(known)} have one, such as {min(known)}"
        )
    return archive, [case for case in labelled if subjects is None or case.subject in subjects]


def _check_out(out: Path, job: tuple[int, str, int]) -> None:
    """InputError, before anything is scored, where more than an earlier table of the same job would be lost."""
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a CSV file")
    if not out.exists():
        return
    try:
        others = {row.key[:3] for row in read_scores(out)} - {job}
    except InputError:
        raise InputError(f"{out}: is there, and no table of scores; give another name, or remove it") from None
    if others:
        raise InputError(
            f"{out}: holds scores of other jobs ({job_text(min(others))}), which would be lost; give another name"
        )


def _write_table(out: Path, rows: list[ScoreRow], labels: Labels) -> None:
    """The rows as a file, their means on the terminal."""
    write_scores(out, rows)
    table = [("class", "Dice", "HD95 mm", "surface Dice", "cases")]
    for name in (target.name for target in labels.targets):
        own = [row for row in rows if row.class_name == name]
        means = [sum(getattr(r, key) for r in own) / len(own) for key in ("dice", "hd95_mm", "surface_dice")]
        table.append((name, f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:.3f}", str(len(own))))
    show_table(f"{len({row.case for row in rows})} cases", table)
    say(EMPTY_MASK_RULE)
    say(f"scores: {out}")


def run_report_verb(folder: Path, out: Path | None, arm: str | None) -> None:
    if folder.name == "report" and (folder.parent / INPUTS).is_file():  # a sweep's: what it is made of lies above
        folder = folder.parent
    material = read_material(folder)
    results = analyse(material.rows, material.inputs, arm=arm, elsewhere=material.elsewhere)
    page = write_report(material.rows, material.inputs, results, folder, out or folder / "report")
    say(f"report: {page}")
