"""What stands in the report besides tables and figures: facts and the account of how it was measured, as plain text.

Page and Markdown say the same sentences, so they are written once, here.
"""

from collections.abc import Sequence

from maetrain.evaluate.scores import ScoreRow
from maetrain.report.inputs import ReportInputs
from maetrain.report.resampling import NUM_RESAMPLES
from maetrain.report.results import Results
from maetrain.report.verdict import ALPHA

SECTIONS = {  # key -> title, in the order of page and Markdown
    "efficiency": "Label efficiency",
    "saved": "Labels saved",
    "arms": "The other arms",
    "convergence": "Convergence",
    "elsewhere": "Elsewhere",
    "classes": "Scores per class",
    "pretraining": "Pretraining and reconstructions",
    "overlays": "Segmentations",
    "method": "How it was measured",
    "quarantine": "Quarantine",
    "configuration": "Configuration",
    "provenance": "Provenance",
}
CAUTIONS = "Read with care"
NO_COMPARISON = "No test case was scored by both arms with the same budget and seed."
NO_SAVING = "Labels saved need scores of the baseline at two budgets at least, and a seed that all jobs share."
NO_OTHER_ARM = "No other arm was scored."
NO_CURVE = "No validation curve was recorded."
NO_SET = "The models were not scored on cases from elsewhere."
NO_PRETRAINING = "No pretraining curve was recorded."
NO_PICTURE = "No picture was recorded."
NO_QUARANTINE = "No scan was left out."
NO_CONFIGURATION = "No configuration was recorded."
NO_PROVENANCE = "No provenance was recorded."
COMPARED = (
    "Difference with its 95\N{NO-BREAK SPACE}% interval (two-level bootstrap over persons and seeds) and Wilcoxon "
    "signed-rank p over persons, which takes the seeds as they are, corrected over the budgets of a table (Holm). A "
    "verdict needs both: an interval without zero, and such a p."
)
SAVED = (
    "How many labelled persons the baseline needs for what an arm reaches, and how many times the arm's that is. Read "
    "off the baseline's curve between the budgets that were run, so no whole persons: linear in log2 of the budget; "
    "where it dips, the first crossing counts; beyond its ends nothing is guessed. 95\N{NO-BREAK SPACE}% interval: "
    "two-level bootstrap with one draw for all budgets, not corrected over them."
)
ELSEWHERE = f"The same models, untuned, on cases from another scanner or study. {COMPARED}"
CONVERGENCE = "Validation Dice on the way: bold the mean over seeds, thin each seed."
FILES = (
    "The same numbers as files: report.md, scores.csv, curves.csv, comparisons.csv, labels_saved.csv, classes.csv, "
    "convergence.csv, generalisation.csv, budget_curve.csv, summary.json; the figures as PNG."
)


def facts(rows: Sequence[ScoreRow], inputs: ReportInputs) -> list[tuple[str, str]]:
    """(name, value), the most telling first. Counted are the scores: a sweep may score a part of the test set."""
    scored = len({row.subject for row in rows})
    found = [
        ("test persons", scored if scored >= inputs.test_subjects else f"{scored} of {inputs.test_subjects}"),
        ("test scans scored", len({row.case for row in rows})),
        ("label budgets", len({row.budget for row in rows})),
        ("seeds", len({row.seed for row in rows})),
        ("volumes in the pretraining pool", "unknown" if inputs.pool_volumes is None else inputs.pool_volumes),
    ]
    return [(name, str(value)) for name, value in found]


def method(results: Results, inputs: ReportInputs) -> list[str]:
    """One paragraph each."""
    if inputs.overlap is None:
        apart = (
            "Whether test persons were kept from pretraining, training, tuning and the choice of a model, these files "
            "don't say."
        )
    else:
        apart = (
            "Test persons are set apart by person, never by scan, before pretraining, training, tuning and the choice "
            f"of a model. Their overlap with the pretraining pool, as checked: {inputs.overlap.by_person} by person, "
            f"{inputs.overlap.by_voxel_hash} by voxel hash."
        )
    return [
        f"{apart} All models were scored on the same cases and classes.",
        "The value of a case is its mean Dice over the foreground classes, that of a person the mean over his or her "
        f"cases. Arms are paired by case and seed: the difference is {results.arm} minus {results.baseline} for the "
        "same person, budget and seed.",
        f"The 95 % interval is a two-level bootstrap: {NUM_RESAMPLES} resamples of persons, then of seeds. A drawn "
        "seed holds for all persons, as one seed is one pair of trained models. Before resampling, the spread is "
        "widened by what few persons and seeds don't know of it (Student's t with Satterthwaite's degrees of freedom); "
        "intervals end where Dice and its differences do. "
        "The p value is a two-sided Wilcoxon signed-rank test over the persons' mean differences, corrected over the "
        "budgets by Holm's method.",
        f"A difference counts as real when its interval excludes zero and its corrected p is below {ALPHA:g}; an "
        "interval that excludes zero without such a p is called unconfirmed.",
    ]
