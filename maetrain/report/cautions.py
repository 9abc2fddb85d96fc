"""What limits what the report may be taken to show, each in a sentence."""

from collections.abc import Iterable, Mapping, Sequence

from maetrain.evaluate.scores import ScoreRow
from maetrain.report.inputs import ReportInputs
from maetrain.report.statistics import BudgetComparison
from maetrain.report.verdict import ALPHA, CONTROL, control_sentence, differs
from maetrain.report.wording import count, join

ENOUGH_SUBJECTS = 20
ENOUGH_SEEDS = 5


def resolution_warning(n_subjects: int, where: str = "") -> str | None:
    """The sentence for a test set too small to resolve a point of Dice; None from ENOUGH_SUBJECTS persons on."""
    if n_subjects >= ENOUGH_SUBJECTS:
        return None
    return (
        f"Only {count(n_subjects, 'test person')}{where}: fewer than {ENOUGH_SUBJECTS} can't resolve a difference of "
        "one point of Dice (0.01). Read the intervals, not the means."
    )


def gather_warnings(
    rows: Sequence[ScoreRow],
    inputs: ReportInputs,
    comparisons: Mapping[str, Sequence[BudgetComparison]],
    elsewhere: Mapping[str, Sequence[ScoreRow]],
    baseline: str,
    arm: str,
) -> list[str]:
    """Everything that limits the result, the gravest first. comparisons: of each arm; elsewhere: rows of each set."""
    own = comparisons[arm]
    return [
        *_overlap(inputs),
        *_persons(own, len({row.subject for row in rows})),
        *_seeds(comparisons, arm),
        *(
            control_sentence(found)
            for name, found in comparisons.items()
            if name == CONTROL and any(map(differs, found))
        ),
        *_missing(rows, (baseline, *comparisons)),
        *(text for name, there in elsewhere.items() for text in _set_elsewhere(rows, name, there)),
    ]


def _overlap(inputs: ReportInputs) -> list[str]:
    if inputs.overlap is None:
        return ["Whether test persons are in the pretraining pool was not checked."]
    if not (inputs.overlap.by_person or inputs.overlap.by_voxel_hash):
        return []
    return [
        f"Test persons are in the pretraining pool ({inputs.overlap.by_person} by person, "
        f"{inputs.overlap.by_voxel_hash} by voxel hash): the comparison is void."
    ]


def _persons(comparisons: Sequence[BudgetComparison], num_scored: int) -> list[str]:
    smallest = min([c.n_subjects for c in comparisons], default=num_scored)
    found = [text] if (text := resolution_warning(smallest)) else []
    if comparisons and (floor := min(1.0, 2.0 ** (1 - smallest)) * len(comparisons)) >= ALPHA:
        found.append(
            f"With {count(smallest, 'test person')} and {count(len(comparisons), 'budget')} the smallest possible "
            f"p (Holm) is {min(1.0, floor):.2g}: no effect, however large, could be confirmed."
        )
    return found


def _seeds(comparisons: Mapping[str, Sequence[BudgetComparison]], main: str) -> list[str]:
    """What few seeds leave open for the main arm, and for arms that have fewer than that."""
    fewest = {arm: min(c.n_seeds for c in own) for arm, own in comparisons.items() if own}
    of_main = fewest.get(main, ENOUGH_SEEDS)
    others: dict[int, list[str]] = {}
    for arm, num in fewest.items():
        if num < min(of_main, ENOUGH_SEEDS):
            others.setdefault(num, []).append(arm)
    return [
        *_few_seeds(of_main),
        *(text for num, arms in sorted(others.items()) for text in _few_seeds(num, f" of {join(arms)}")),
    ]


def _few_seeds(num: int, whose: str = "") -> list[str]:
    if num == 1:
        return [f"Only 1 seed{whose}: the intervals say nothing about the luck of a training run."]
    if num >= ENOUGH_SEEDS:
        return []
    return [
        f"Only {num} seeds{whose}: how much the luck of a training run matters is known roughly. The intervals are "
        "widened for it and still fall short of 95 % where it matters most, and p says nothing about it: a small "
        "difference may be luck even where it is called real."
    ]


def _missing(rows: Sequence[ScoreRow], arms: Iterable[str]) -> list[str]:
    """A sentence for each arm that lacks a job (budget, seed) which another arm has."""
    jobs = {arm: {(row.budget, row.seed) for row in rows if row.arm == arm} for arm in arms}
    everywhere = set().union(*jobs.values())
    found = []
    for arm, own in jobs.items():
        if lacking := sorted(everywhere - own):
            budgets = join([str(budget) for budget in sorted({budget for budget, _ in lacking})])
            jobs_there = count(len(everywhere), "job")
            found.append(
                f"{arm} lacks {len(lacking)} of {jobs_there} that other arms have (labelled persons: {budgets}): "
                "what has no counterpart is not compared."
            )
    return found


def _set_elsewhere(rows: Sequence[ScoreRow], name: str, there: Sequence[ScoreRow]) -> list[str]:
    found = [text] if (text := resolution_warning(len({row.subject for row in there}), f" in {name}")) else []
    if strangers := {row.key[:3] for row in there} - {row.key[:3] for row in rows}:
        found.append(f"{count(len(strangers), 'job')} in {name} without scores on the test persons: other models?")
    return found
