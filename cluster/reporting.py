"""Gathers what the stages left on disk into one report."""

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from cluster.grid import Comparison
from cluster.stages import Stage
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.handover import PoolScan, check_fits, made_of, read_pool
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult
from maetrain.finetune.plan import Encoders
from maetrain.recipes.config import SCRATCH, RunConfig
from maetrain.recipes.load import explained
from maetrain.report.inputs import Curve, Overlap, Picture, PretrainCurve, Quarantined, ReportInputs
from maetrain.report.results import main_arm
from maetrain.report.wording import join, persons
from maetrain.train.curve import Curve as LossCurve


def overlap(index: ShardIndex, subjects: Sequence[str], pool: Sequence[PoolScan]) -> Overlap:
    """How many of these persons an encoder has seen: by name, and by the voxels of any of their scans."""
    held_out = [volume for volume in index.volumes if volume.subject in set(subjects)]
    seen_subjects, seen_voxels = {s.subject for s in pool}, {s.voxel_sha256 for s in pool}
    return Overlap(
        by_person=len({v.subject for v in held_out if v.subject in seen_subjects}),
        by_voxel_hash=sum(v.voxel_sha256 in seen_voxels for v in held_out),
    )


def check_encoder(index: ShardIndex, split: Split, config: RunConfig, handover: Path) -> None:
    """InputError where the encoder does not fit the network and the data, or has seen a test person."""
    preprocess, other_channels = index.preprocess.model_dump(mode="json"), config.finetune.pretrained_channels
    check_fits(handover, config.model, preprocess, index.channel_names, other_channels)
    check_overlap(index, split, handover)


def check_overlap(index: ShardIndex, split: Split, handover: Path) -> Overlap:
    """InputError where the encoder has seen a test person: the comparison would be void."""
    found = overlap(index, split.test, read_pool(handover))
    if found.by_person or found.by_voxel_hash:
        raise InputError(
            f"{handover}: this encoder was pretrained on {found.by_person} of the {len(split.test)} test persons "
            f"({found.by_voxel_hash} scans with the same voxels); pretrain with the same split as the sweep's"
        )
    return found


def report_inputs(
    comparison: Comparison,
    results: Sequence[JobResult],
    stages: Mapping[FinetuneJob, Stage],
    rates: Mapping[str, float],
    provenance: dict[str, str],
) -> ReportInputs:
    """Everything on the report's page that is not a score; picture paths are relative to `comparison.out`.

    Where several encoders are compared, the page shows the pretraining of the first, and the main arm's pool; the
    overlap is that of all.
    """
    config, index, split = comparison.config, comparison.index, comparison.split
    encoders = {arm: [Path(folder) for folder in folders] for arm, folders in comparison.arms.items() if folders}
    handovers = [folder for folders in encoders.values() for folder in folders]
    pools = {arm: [read_pool(folder) for folder in folders] for arm, folders in encoders.items()}
    seen = [scan for own in pools.values() for pool in own for scan in pool]
    shown = next((folder.parent for folder in handovers if (folder.parent / "curve.jsonl").is_file()), None)
    loss = LossCurve.load(shown / "curve.jsonl") if shown else LossCurve()
    runs = "; ".join(f"{arm}: {', '.join(map(made_of, folders))}" for arm, folders in encoders.items())
    main = main_arm({*comparison.arms}, SCRATCH, None)
    return ReportInputs(
        title=config.title,
        test_subjects=len(split.test),
        pool_volumes=max((len(pool) for pool in pools.get(main, [])), default=0),
        overlap=overlap(index, split.test, seen),
        tolerance_mm=config.evaluate.tolerance_mm,
        curves=[
            Curve(budget=r.job.budget, arm=r.job.arm, seed=r.job.seed, steps=r.monitor_steps, dice=r.monitor_dice)
            for r in results
        ],
        pretrain_curve=PretrainCurve(
            steps=[p.step for p in loss], loss=[p.loss for p in loss], volumes_per_s=[p.volumes_per_s for p in loss]
        ),
        pictures=_pictures(shown, stages, comparison.out),
        config_yaml=explained(config, without=() if comparison.pretrains else ("pretrain",)),
        provenance={"shard index": index.sha256, "encoder runs": runs or "none"} | provenance,
        quarantined=[Quarantined(case=q.case, path=q.path, reason=q.reason) for q in index.quarantined],
        notes=[
            *notes(config, index, comparison.arms, rates, {job.budget for job in comparison.trials()}),
            *_watched_and_seen(overlap(index, split.monitor, seen)),
            *_unequal_steps(results),
            *several_versions(results),
        ],
    )


def _watched_and_seen(monitor: Overlap) -> list[str]:
    """Foreign encoders may have seen whom the curves are drawn on."""
    if not (monitor.by_person or monitor.by_voxel_hash):
        return []
    return [
        f"Persons who draw the convergence curves were pretrained on ({monitor.by_person} by name, "
        f"{monitor.by_voxel_hash} scans by voxels): the curves flatter that arm, the test scores do not."
    ]


def _unequal_steps(results: Sequence[JobResult]) -> list[str]:
    fewest, most = min(result.steps for result in results), max(result.steps for result in results)
    if fewest == most:
        return []
    return [
        f"Jobs ended early (finetune.patience), after {fewest} to {most} steps: arms are not compared at equal steps."
    ]


def several_versions(results: Sequence[JobResult]) -> list[str]:
    """Jobs that are kept from an earlier call may be of an older program; their settings alone are the same."""
    commits: dict[str, set[str]] = {}
    for result in results:
        commits.setdefault(result.job.arm, set()).add(result.made_by.get("commit", "unknown"))
    if len(set().union(*commits.values())) < 2:
        return []
    listed = "; ".join(f"{arm} by {join(sorted(found))}" for arm, found in commits.items())
    return [
        f"Jobs were finished by different versions of the code ({listed}): arms may differ by more than their start."
    ]


def _pictures(pretraining: Path | None, stages: Mapping[FinetuneJob, Stage], out: Path) -> list[Picture]:
    """The reconstruction, and one overlay for each budget and arm of the first seed."""
    found = []
    if pretraining is not None:
        caption = "Middle slices of one crop: the scan, what the encoder saw, and the hidden parts as it rebuilt them."
        found.append(("reconstruction", caption, pretraining / "reconstruction.png"))
    first_seed = min(job.seed for job in stages)
    for job, stage in stages.items():
        if job.seed == first_seed:
            caption = f"First test case, {job.arm}, {job.budget} labelled person{'s' if job.budget > 1 else ''}."
            found.append(("overlay", caption, stage.folder / "overlay.png"))
    return [
        Picture(kind=kind, caption=caption, path=os.path.relpath(path, out))
        for kind, caption, path in found
        if path.is_file()
    ]


def notes(
    config: RunConfig,
    index: ShardIndex,
    arms: Mapping[str, Encoders],
    rates: Mapping[str, float],
    tried: Set[int],
) -> list[str]:
    """What a reader must know of how it was run. rates: of each arm, where trials chose them at the budgets `tried`."""
    said = []
    if config.sweep.max_test_cases:
        said.append(f"Only the first {config.sweep.max_test_cases} test cases were scored (sweep.max_test_cases).")
    warmup_steps, steps = config.finetune.warmup_steps, config.finetune.steps
    if warmup_steps >= steps:
        said.append(
            f"All of training was warm-up (finetune.warmup_steps = {warmup_steps}, finetune.steps = {steps}): the "
            "learning rate only rose."
        )
    if index.duplicates:
        said.append(f"{len(index.duplicates)} scans with the voxels of another were left out.")
    if rates:
        chosen = ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items())
        grid = ", ".join(f"{rate:g}" for rate in config.sweep.learning_rates)
        said.append(
            f"Peak learning rates, each arm's chosen out of {grid} on validation persons with "
            f"{persons(sorted(tried))}: {chosen}."
        )
        untried = [budget for budget in config.sweep.budgets if budget not in tried]
        seeds = [str(seed) for seed in config.sweep.seeds[config.sweep.trial_seeds :]]
        others = [persons(untried)] if untried else []
        others += [f"seed{'s' * (len(seeds) > 1)} {join(seeds)}"] if seeds else []
        if others:
            said.append(
                f"These rates, chosen there, serve {' and '.join(others)}, too: none were searched for those, and "
                "labels of persons beyond theirs took part in the choice."
            )
    elif len(arms) > 1:
        said.append(
            f"Peak learning rate: {config.finetune.learning_rate:g} from scratch, "
            f"{config.finetune.pretrained_learning_rate:g} from a pretrained encoder; fixed beforehand, not searched."
        )
    if few := {arm: len(folders) for arm, folders in arms.items() if 0 < len(folders) < len(config.sweep.seeds)}:
        listed = join([f"{arm} {num}" for arm, num in few.items()])
        said.append(
            f"Pretrained encoders for {len(config.sweep.seeds)} seeds: {listed}. The intervals know the luck of "
            "finetuning; of the luck of a pretraining run they know no more than these show."
        )
    return said
