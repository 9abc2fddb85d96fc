"""`maetrain evaluate` and `report`: scores and what is made of them."""

import math
from pathlib import Path
from typing import Literal

import click

from cluster.arguments import FILE, FOLDER, PATH, examples


@click.command(
    epilog=examples(
        "maetrain evaluate out/jobs/JOB/model scans/ --out scores.csv",
        "maetrain evaluate --predictions nnunet/predicted scans/ scores.csv --arm nnunet --budget 8 --seed 1",
    )
)
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="[MODEL] ARCHIVE [OUT]")
@click.option("--out", type=FILE, help="CSV of scores, one row per case and class; or OUT as the last argument.")
@click.option("--predictions", type=FOLDER, help="Score the segmentations in this folder instead of a MODEL.")
@click.option("--arm", help="What the table calls these predictions; needed with --predictions.")
@click.option("--budget", type=click.IntRange(min=1), help="Labelled persons they learnt from. Default: 1.")
@click.option("--seed", type=int, help="Seed of their training. Default: 0.")
@click.option("--subjects", help="Comma-separated persons to score; default: all labelled ones.")
@click.option(
    "--names",
    type=click.Choice(["auto", "keep", "hash"]),
    default="auto",
    show_default=True,
    help="Names of cases and persons, as shards.privacy.names of the shards; the salt is MAETRAIN_SALT.",
)
@click.option(
    "--tolerance-mm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Tolerance of surface Dice."
)
def evaluate(
    paths: tuple[Path, ...],
    out: Path | None,
    predictions: Path | None,
    arm: str | None,
    budget: int | None,
    seed: int | None,
    subjects: str | None,
    names: Literal["auto", "keep", "hash"],
    tolerance_mm: float,
) -> None:
    """Score the finetuned MODEL on labelled cases of ARCHIVE, in the scans' own grid and spacing.

    With --predictions, score segmentations that any program has written: one file a case (NIfTI, NRRD or MHA),
    called as the case, its image or its label, and in the grid of its label.
    """
    from cluster.score_verbs import run_evaluate_verb, run_predictions_verb
    from data_shards.archive.identity import PrivacyConfig

    named = paths if out is None else (*paths, out)
    persons = None if subjects is None else [person.strip() for person in subjects.split(",")]
    privacy = PrivacyConfig(names=names)
    if not math.isfinite(tolerance_mm):
        raise click.BadParameter(f"--tolerance-mm {tolerance_mm}: give a number of mm")
    if predictions is not None:
        arm = (arm or "").strip()
        if len(named) != 2 or not arm:
            raise click.UsageError("--predictions FOLDER needs ARCHIVE, OUT and --arm NAME, and no MODEL")
        job = (1 if budget is None else budget, arm, 0 if seed is None else seed)
        run_predictions_verb(predictions, *named, persons, privacy, tolerance_mm, job)
        return
    if len(named) != 3:
        raise click.UsageError("give MODEL ARCHIVE --out OUT, or --predictions FOLDER ARCHIVE OUT --arm NAME")
    if arm is not None or budget is not None or seed is not None:
        raise click.UsageError("--arm, --budget and --seed go with --predictions; a MODEL knows its own")
    run_evaluate_verb(*named, persons, privacy, tolerance_mm)


@click.command(epilog=examples("maetrain report out/", "maetrain report docs/results/NAME --out report/ --arm mae"))
@click.argument("folder", type=PATH)
@click.option("--out", type=FOLDER, help="Where to write. Default: FOLDER/report.")
@click.option("--arm", help="The arm the report is about. Default: mae, or the first beside scratch.")
def report(folder: Path, out: Path | None, arm: str | None) -> None:
    """Write the report anew from FOLDER/scores.csv, or FOLDER/report/scores.csv as a sweep leaves it.

    Beside it may lie inputs.json (configuration, provenance, pictures), curves.csv (validation curves), and
    elsewhere/NAME.csv (scores of the same models on cases from another scanner or study).
    """
    from cluster.score_verbs import run_report_verb

    run_report_verb(folder, out, arm)
