"""The sweep and what comes of it: scores, statistics, the report, and the parent run in the tracker."""

import time
from collections.abc import Mapping
from pathlib import Path

from cluster.champions import crown
from cluster.console import say, show_table
from cluster.grid import Comparison
from cluster.pipeline import Timings
from cluster.provenance import provenance
from cluster.reporting import report_inputs
from cluster.session import Resources
from cluster.stages import Stage
from cluster.sweep import results_of, run_sweep
from maetrain.evaluate.scores import ScoreRow, read_scores, write_scores
from maetrain.finetune.config import FinetuneJob
from maetrain.recipes.config import RunConfig
from maetrain.report.material import ELSEWHERE, INPUTS
from maetrain.report.page import write_report
from maetrain.report.results import Results, analyse
from maetrain.report.verdict import summary_rows
from maetrain.tracking.mlflow_tracker import MlflowTracker
from maetrain.tracking.patience import StoreAway
from maetrain.tracking.work import Tracking


def compare_arms(
    comparison: Comparison, resources: Resources, parent: MlflowTracker, tracking: Tracking, timings: Timings
) -> Path:
    """Runs what is missing of the sweep, writes and shows `comparison.out`/report, returns its page.

    Only then the parent's run gets it, and an MLflow that does not answer is said.
    """
    config, arms, out = comparison.config, comparison.arms, comparison.out
    grid = f"budgets {list(config.sweep.budgets)} x arms {list(arms)} x {len(config.sweep.seeds)} seeds"
    say(f"sweep: {len(config.sweep.budgets) * len(arms) * len(config.sweep.seeds)} jobs, {grid}")
    started = time.perf_counter()
    stages, rates = run_sweep(comparison, resources, tracking, say)
    timings["sweep"] = time.perf_counter() - started
    results = results_of(stages)
    facts = provenance() | {
        "jobs finished by": "; ".join(sorted({stage.made_by() for stage in stages.values()})),
        "wall time of this call": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items()),
        "wall time of finetuning": f"{sum(r.seconds for r in results):.0f} s over {len(results)} jobs",
    }
    inputs = report_inputs(comparison, results, stages, rates, facts)
    inputs.save(out / INPUTS)
    rows = [row for stage in stages.values() for row in read_scores(stage.folder / "scores.csv")]
    elsewhere = _gather_elsewhere(comparison, stages)
    numbers = analyse(rows, inputs, elsewhere=elsewhere)
    page = write_report(rows, inputs, numbers, out, out / "report")
    say("")
    if numbers.comparisons:
        show_table(f"Dice on {numbers.comparisons[0].n_subjects} test persons", summary_rows(numbers.comparisons))
        say(numbers.headline)
    say(f"report: {page}")
    try:
        log_parent(parent, config, numbers, page.parent)
        crown(dict(zip(stages, results, strict=True)), stages, comparison.index.name, tracking, say)
    except StoreAway as away:
        say(f"  {away}")
    return page


def _gather_elsewhere(comparison: Comparison, stages: Mapping[FinetuneJob, Stage]) -> dict[str, list[ScoreRow]]:
    """name -> the scores of all jobs on that other study; as files in `comparison.out`, for `maetrain report`."""
    found = {}
    for name in comparison.elsewhere:
        found[name] = [row for s in stages.values() for row in read_scores(s.folder / ELSEWHERE / f"{name}.csv")]
        write_scores(comparison.out / ELSEWHERE / f"{name}.csv", found[name])
    for path in (comparison.out / ELSEWHERE).glob("*.csv"):
        if path.stem not in found:
            path.unlink()
    return found


def log_parent(parent: MlflowTracker, config: RunConfig, numbers: Results, report: Path) -> None:
    """The curve itself on the parent run: one metric an arm, step = labelled persons; and the report's files.

    A point that stands there already, from an earlier call, is not logged again.
    """
    parent.params(config.model_dump(mode="json", exclude={"shards": {"privacy"}}))
    curves = {arm: parent.points(f"test_dice_{arm}") for arm in {point.arm for point in numbers.points}}
    for point in numbers.points:
        if curves[point.arm].get(point.budget) != point.mean:
            parent.metrics({f"test_dice_{point.arm}": point.mean}, step=point.budget)
    for path in sorted(path for path in report.rglob("*") if path.is_file()):
        parent.file(path, str(Path("report") / path.parent.relative_to(report)))
    said = numbers.headline
    parent.tags({"mlflow.note.content": f"{said}\n\nThe report is among the artifacts: report/index.html."})
