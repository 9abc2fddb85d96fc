"""The sweep and what comes of it: scores, statistics, the report, and the parent run in the tracker."""

import time
from collections.abc import Mapping
from pathlib import Path

from cluster.console import progress_bar, say, show_table
from cluster.pipeline import Timings
from cluster.provenance import provenance
from cluster.reporting import report_inputs
from cluster.session import Resources
from cluster.sweep import results_of, run_sweep
from cluster.tracked import Tracking
from data_shards.archive.layout import Archive
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.evaluate.scores import read_scores
from maetrain.finetune.plan import plan_jobs
from maetrain.recipes.config import RunConfig
from maetrain.report.page import write_report
from maetrain.report.results import Results, analyse
from maetrain.report.verdict import headline, summary_rows
from maetrain.tracking.mlflow_tracker import MlflowTracker
from maetrain.tracking.tracker import Tracker

INPUTS = "inputs.json"


def compare_arms(
    config: RunConfig,
    index: ShardIndex,
    archive: Archive,
    split: Split,
    arms: Mapping[str, str | None],
    out: Path,
    resources: Resources,
    parent: MlflowTracker,
    tracking: Tracking,
    timings: Timings,
) -> Path:
    """Runs what is missing of the sweep, writes `out`/report, returns its page. `arms`: name -> handover folder."""
    jobs = plan_jobs(index, split, config.sweep.budgets, config.sweep.seeds, arms)
    say(
        f"sweep: {len(jobs)} jobs, budgets {list(config.sweep.budgets)} x arms {list(arms)} "
        f"x {len(config.sweep.seeds)} seeds"
    )
    started = time.perf_counter()
    with progress_bar("finetune jobs") as bar:
        stages = run_sweep(jobs, config, index, archive, split, out, resources, bar, tracking, say)
    timings["sweep"] = time.perf_counter() - started
    results = results_of(stages)
    facts = provenance() | {
        "jobs finished by": "; ".join(sorted({stage.made_by() for stage in stages.values()})),
        "wall time of this call": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items()),
        "wall time of finetuning": f"{sum(r.seconds for r in results):.0f} s over {len(results)} jobs",
    }
    inputs = report_inputs(config, index, split, arms, results, stages, facts, out)
    inputs.save(out / INPUTS)
    rows = [row for stage in stages.values() for row in read_scores(stage.folder / "scores.csv")]
    page = write_report(rows, inputs, out, out / "report")
    numbers = analyse(rows, inputs)
    log_parent(parent, config, numbers, page.parent)
    say("")
    if numbers.comparisons:
        show_table(f"Dice on {numbers.comparisons[0].n_subjects} test persons", summary_rows(numbers.comparisons))
        say(headline(numbers.comparisons))
    return page


def log_parent(parent: Tracker, config: RunConfig, numbers: Results, report: Path) -> None:
    """The curve itself on the parent run: one metric an arm, step = labelled persons; and the report's files."""
    parent.params(config.model_dump(mode="json", exclude={"shards": {"privacy"}}))
    for point in numbers.points:
        parent.metrics({f"test_dice_{point.arm}": point.mean}, step=point.budget)
    for path in sorted(report.iterdir()):
        parent.file(path, "report")
    said = headline(numbers.comparisons)
    parent.tags({"mlflow.note.content": f"{said}\n\nThe report is among the artifacts: report/index.html."})
