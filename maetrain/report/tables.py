"""The tables of the report as text cells, once for the page, for Markdown and for whoever reads them.

The numbers behind them, with every digit, go into CSV and JSON files (`files.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.report.inputs import ReportInputs
from maetrain.report.results import ArmResult, Results
from maetrain.report.statistics import BudgetComparison, ClassMean
from maetrain.report.verdict import verdict
from maetrain.report.wording import DASH, ends_text, interval_text, p_text, persons, ratio_text, reach_text, signed


@dataclass(frozen=True)
class Table:
    """caption: what the numbers are and how they were got. The first cell of a row is its head.

    over: (heading, number of columns) above the columns after the first; () for none. groups: one title per row, equal
    for the rows of a group; () for none. text_columns: columns of words.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    over: tuple[tuple[str, int], ...] = ()
    groups: tuple[str, ...] = ()
    text_columns: tuple[int, ...] = ()


def comparison_table(comparisons: Sequence[BudgetComparison], where: str = "") -> Table:
    """where: the set of cases, when it is not the test set. `content.COMPARED` says how the numbers were got."""
    baseline, arm = comparisons[0].baseline_arm, comparisons[0].arm
    columns = ("labelled persons", baseline, arm, "difference", "95 % interval", "p (Holm)", "test persons", "seeds")
    rows = [
        (
            str(c.budget), f"{c.baseline_mean:.3f}", f"{c.arm_mean:.3f}", signed(c.difference), interval_text(c),
            p_text(c.p_holm), str(c.n_subjects), str(c.n_seeds), verdict(c),
        )
        for c in comparisons
    ]  # fmt: skip
    caption = f"Mean Dice over the foreground classes{where and f' in {where}'}, {arm} against {baseline}."
    return Table(caption, (*columns, "verdict"), rows, text_columns=(8,))


def saved_table(result: ArmResult) -> Table:
    """`content.SAVED` says how the numbers were got."""
    first = result.saved[0]
    baseline, arm = first.baseline_arm, first.arm
    columns = ("labelled persons", f"Dice of {arm}", f"{baseline} needs", "95 % interval")
    rows = [
        (
            str(s.budget), f"{s.target_dice:.3f}",
            reach_text(s.equivalent, s), ends_text(reach_text, s.low, s.high, s),
            ratio_text(s.ratio, s), ends_text(ratio_text, s.ratio_low, s.ratio_high, s),
            str(s.n_subjects), str(s.n_seeds),
        )
        for s in result.saved
    ]  # fmt: skip
    caption = f"Labelled persons that {baseline} needs for the mean Dice that {arm} reaches."
    return Table(caption, (*columns, "times the labels", "95 % interval", "test persons", "seeds"), rows)


def convergence_table(results: Results) -> Table:
    rows, groups = [], []
    for one in results.arms:
        for c in one.convergence:
            cells = (f"{c.target_dice:.3f}", f"{c.baseline_steps:.0f}", _steps(c.arm_steps), _times(c.ratio))
            between = DASH if c.n_seeds < 2 else ends_text(_times, c.low, c.high)
            rows.append((str(c.budget), *cells, between, str(c.n_seeds)))
            groups.append(one.arm)
    baseline = results.baseline
    columns = (
        "labelled persons",
        "Dice to reach",
        f"steps, {baseline}",
        "steps, arm",
        "ratio",
        "95 % interval",
        "seeds",
    )
    caption = (
        f"Steps after which the mean curve first reaches {baseline}'s final validation Dice. Ratio: the arm's over "
        f"{baseline}'s; 0.50 means half the steps, never: not in the steps that were trained. 95 % interval: bootstrap "
        "over seeds alone; the monitor persons are taken as they are, because only their mean is recorded."
    )
    return Table(caption, columns, rows, groups=tuple(groups))


def classes_table(results: Results, inputs: ReportInputs) -> Table:
    table = {(m.budget, m.arm, m.class_name): m for m in results.classes}
    arms = [name for name in results.styles if any(arm == name for _, arm, _ in table)]
    classes = list(dict.fromkeys(name for _, _, name in table))
    at = "" if inputs.tolerance_mm is None else f" at {inputs.tolerance_mm:g} mm"
    scores: list[tuple[str, Callable[[ClassMean], str]]] = [
        ("Dice", lambda m: f"{m.dice:.3f}"),
        ("HD95, mm", lambda m: f"{m.hd95_mm:.2f}"),
        (f"surface Dice{at}", lambda m: f"{m.surface_dice:.3f}"),
    ]
    rows, groups = [], []
    for budget in sorted({budget for budget, _, _ in table}):
        for name in classes:
            means = [table.get((budget, arm, name)) for arm in arms]
            rows.append((name, *(text(mean) if mean else DASH for _, text in scores for mean in means)))
            groups.append(persons([budget]))
    num_persons = sorted({m.n_subjects for m in results.classes})
    num_seeds = sorted({m.n_seeds for m in results.classes})
    unknown = "" if at else " The tolerance of surface Dice was not recorded."
    caption = (
        f"Means over {_range(num_persons, 'test person')} and {_range(num_seeds, 'seed')}, whole volumes in the "
        f"image's own spacing. HD95: lower is better.{unknown} {EMPTY_MASK_RULE}"
    )
    columns = ("class", *(arm for _ in scores for arm in arms))
    return Table(caption, columns, rows, tuple((name, len(arms)) for name, _ in scores), tuple(groups))


def quarantine_table(inputs: ReportInputs) -> Table:
    rows = [(q.case, q.path, q.reason) for q in inputs.quarantined]
    return Table("Scans that could not be used, and why.", ("case", "file", "reason"), rows, text_columns=(1, 2))


def _steps(steps: float) -> str:
    return "not reached" if steps == float("inf") else f"{steps:.0f}"


def _times(ratio: float) -> str:
    return "never" if ratio == float("inf") else f"{ratio:.2f}"


def _range(numbers: Sequence[int], noun: str) -> str:
    ends = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{ends} {noun}{'' if numbers == [1] else 's'}"
