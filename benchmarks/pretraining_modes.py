"""Does computing visible units only cost anything downstream? Dice after `visible` against after `dense` pretraining.

    python -m benchmarks.pretraining_modes --data DATA --out FOLDER [--recipe small] [--write RESULT.md] [key=value ...]

Same shards, steps, order of samples, masks and finetune jobs; only `pretrain.mae.mode` differs. Scratch stands beside
them. One process, Ray not needed; a second run goes on where the first one stopped. The seeds are those of finetuning:
there is one pretraining a mode, so the interval does not hold the luck of the pretraining itself.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.machine import add_write_option, append_result, describe
from data_shards.archive.layout import Archive, read_archive
from data_shards.build import build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import load_labelled
from data_shards.splits import Split
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.checkpoint.handover import CONTRACT
from maetrain.evaluate.scores import ScoreRow, read_scores
from maetrain.evaluate.study import test_study
from maetrain.finetune.job import Protocol, read_result, run_job
from maetrain.finetune.plan import plan_jobs, pretrain_pool
from maetrain.recipes.config import RunConfig
from maetrain.recipes.load import load_recipe
from maetrain.report.statistics import arm_curve, compare
from maetrain.tracking.tracker import NullTracker
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve, StepInfo
from maetrain.train.export import export_encoder
from maetrain.train.group import RankInfo, alone, joined_group
from maetrain.train.pretrain import pretrain

MODES = ("dense", "visible")


def pretrained(
    mode: str, config: RunConfig, index: ShardIndex, split: Split, out: Path, who: RankInfo
) -> tuple[Path, float]:
    """The handover of a pretraining in `mode`, and its seconds per step."""
    mae = config.pretrain.mae.model_copy(update={"mode": mode})
    setup = PretrainSetup(
        model=config.model,
        pretrain=config.pretrain.model_copy(update={"mae": mae}),
        shards=str(index.root.resolve()),
        pool_subjects=pretrain_pool(index, split),
        run_dir=str((out / mode).resolve()),
    )

    def say(info: StepInfo) -> None:
        if info.step % 50 == 0:
            print(
                f"{mode}: step {info.step}/{config.pretrain.steps} loss {info.loss:.4f} {info.step_s:.2f} s", flush=True
            )

    pretrain(setup, who, say)
    handover = out / mode / "handover"
    if not (handover / CONTRACT).is_file():  # written last
        export_encoder(out / mode, handover)
    speeds = [point.volumes_per_s for point in Curve.load(out / mode / "curve.jsonl")]  # none after 0 steps
    return handover, config.pretrain.global_batch / statistics.median(speeds) if speeds else math.nan


def scores_of(
    config: RunConfig, index: ShardIndex, archive: Archive, split: Split, handovers: dict[str, Path | None], out: Path
) -> list[ScoreRow]:
    """Every budget, arm and seed finetuned and scored on the test persons."""
    arms = {arm: [str(folder)] if folder else [] for arm, folder in handovers.items()}
    jobs = plan_jobs(index, split, config.sweep.budgets, config.sweep.seeds, arms)
    cases = load_labelled(index, sorted({s for job in jobs for s in job.subjects} | set(split.monitor)))
    test = test_study(archive, index, split, config.sweep.max_test_cases)
    protocol = Protocol.of(config.model, config.finetune, index, config.evaluate.tolerance_mm, test)
    rows: list[ScoreRow] = []
    for job in jobs:
        folder = out / "jobs" / job.name
        if read_result(folder) is None:
            result = run_job(
                job,
                protocol,
                [case for case in cases if case.subject in job.subjects],
                [case for case in cases if case.subject in split.monitor],
                folder,
                NullTracker(),
                alone(),
            )
            print(f"{job.name}: Dice {result.test_dice:.3f} in {result.seconds:.0f} s", flush=True)
        rows += read_scores(folder / "scores.csv")
    return rows


def table(rows: list[ScoreRow]) -> list[str]:
    """Markdown: mean Dice per budget and arm, and what lies between the two modes."""
    means = {(point.budget, point.arm): point for point in arm_curve(rows)}
    lines = [
        "| labelled persons | scratch | dense | visible | visible - dense | 95 % interval | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    comparisons = compare(rows, "dense", "visible")
    for found in comparisons:
        cells = [f"{means[found.budget, arm].mean:.4f}" for arm in ("scratch", *MODES)]
        interval = f"{found.low:+.4f} .. {found.high:+.4f}"
        lines.append(
            f"| {found.budget} | {' | '.join(cells)} | {found.difference:+.4f} | {interval} | {found.p_holm:.2f} |"
        )
    first = comparisons[0]
    lines += ["", f"{first.n_subjects} test persons, {first.n_seeds} seeds."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled archive, MSD or nnU-Net layout")
    parser.add_argument("--out", type=Path, required=True, help="where shards, runs and jobs go")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_write_option(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_recipe(arguments.recipe, arguments.overrides)
    archive = read_archive(arguments.data)
    index = build(arguments.data, arguments.out / "shards", config.shards)
    split = config.split.of(index)
    work = fingerprint({"index": index.sha256, "config": config.model_dump(mode="json")})[:8]
    out = arguments.out / work
    fitted = config.model.model_copy(update={"in_channels": len(index.channel_names)})
    config = config.model_copy(update={"model": fitted})
    handovers: dict[str, Path | None] = {"scratch": None}
    speed = {}
    with joined_group() as who:  # one for both: DeepSpeed does not take a second group in one process
        for mode in MODES:
            handovers[mode], speed[mode] = pretrained(mode, config, index, split, out, who)
    lines = table(scores_of(config, index, archive, split, handovers, out))
    mae, pre = config.pretrain.mae, config.pretrain
    heading = [
        f"## {archive.name}, {time.strftime('%Y-%m-%d')}",
        "",
        f"{pre.steps} steps of {pre.global_batch} crops {pre.crop_DHW}, mask unit {mae.unit_of(config.model)}, "
        f"{mae.ratio:.0%} hidden; finetuning {config.finetune.steps} steps of {config.finetune.batch} crops, peak "
        f"rates {config.finetune.learning_rate:g} (scratch) and {config.finetune.pretrained_learning_rate:g}. Median "
        f"pretraining step: dense {speed['dense']:.2f} s, visible {speed['visible']:.2f} s, "
        f"{speed['dense'] / speed['visible']:.1f}x.",
        "",
        f"Overrides of recipe `{arguments.recipe}`: `{' '.join(arguments.overrides)}`.",
        f"{describe(torch.device('cpu'))}.",
        "",
    ]
    text = "\n".join([*heading, *lines, ""])
    append_result(arguments.write, text)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"pretraining_modes: {error}")
