"""The verbs of the command line that are more than one call."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.comparison import INPUTS, compare_arms
from cluster.console import say, show_table
from cluster.demo import EXPERIMENT, tracking_uri
from cluster.pipeline import fit_channels, make_setup, pretrain_and_export
from cluster.pretrain import check_setup, fit_workers
from cluster.reporting import check_encoder
from cluster.session import ray_session
from cluster.tracked import Tracking, tracked
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from data_shards.formats.files import is_remote, write_text
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.scores import ScoreRow, read_scores, write_scores
from maetrain.evaluate.test_set import score_cases
from maetrain.finetune.plan import plan_jobs, pretrain_pool, split_of
from maetrain.recipes.config import RunConfig
from maetrain.report.inputs import ReportInputs
from maetrain.report.page import write_report
from maetrain.tracking.mlflow_tracker import open_experiment


def _split(config: RunConfig, index: ShardIndex) -> Split:
    return split_of(index, config.split.test_share, config.split.monitor_subjects, config.split.seed)


def _tracking(out: Path, uri: str | None) -> Tracking:
    if is_remote(out) and uri is None:
        raise InputError(
            f"--out {out}: runs can't be tracked in a bucket; give --tracking-uri, a server or sqlite:///FILE"
        )
    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    store = uri or tracking_uri(out)
    return Tracking(store, open_experiment(store, EXPERIMENT, None if uri else out / "mlartifacts"), "")


def run_pretrain_verb(
    config: RunConfig,
    shards: Path,
    out: Path,
    address: str | None,
    uri: str | None,
    how: dict[str, Any],
    setup_only: Path | None,
) -> None:
    """`how`: the fields `fork` and `profile` of the setup."""
    index = ShardIndex.load(shards)
    config = fit_channels(config, index)
    split = _split(config, index) if len(index.volumes.labelled) else None
    pool = pretrain_pool(index, split)
    left_out = f"; {len(split.test)} test and {len(split.monitor)} monitor persons are left out" if split else ""
    say(f"pretraining pool: {len(pool)} persons{left_out}")
    setup = make_setup(config, index, pool, out).model_copy(update=how)
    if setup_only:
        setup_only.parent.mkdir(parents=True, exist_ok=True)
        write_text(setup_only, setup.model_dump_json(indent=1))
        say(f"setup written; run it with: python -m maetrain.train {setup_only}")
        return
    with ray_session(address, config.cluster.object_store_mib) as resources:
        config = fit_workers(config, resources)
        check_setup(setup, index.sha256, config.cluster, resources)
        work = fingerprint({"run_dir": setup.run_dir})
        with tracked(_tracking(out, uri), f"pretrain {out.name}", work) as tracker:
            tracker.tags({"kind": "pretrain", "pretrain_run": out.name})
            tracker.params({"model": setup.model.model_dump(), "pretrain": setup.pretrain.model_dump()})
            tracker.dataset(index.name, index.sha256, str(index.root), "pretrain")
            handover = pretrain_and_export(setup, config, index, resources, tracker)
    say(f"encoder: {handover}")


def run_sweep_verb(
    config: RunConfig,
    shards: Path,
    data: Path,
    handover: Path | None,
    out: Path,
    address: str | None,
    uri: str | None,
) -> None:
    index, archive = ShardIndex.load(shards), read_archive(data, read_identity(config.shards.privacy, os.environ))
    config = fit_channels(config, index)
    split = _split(config, index)
    arms: dict[str, str | None] = dict.fromkeys(config.sweep.arms)
    if "mae" in arms:
        if handover is None:
            raise InputError("the arm `mae` needs an encoder: give --handover, or sweep.arms=[scratch]")
        check_encoder(index, split, config, handover)
        arms["mae"] = str(handover.resolve())
    plan_jobs(index, split, config.sweep.budgets, config.sweep.seeds, arms)
    with ray_session(address, config.cluster.object_store_mib) as resources:
        root = _tracking(out, uri)
        work = fingerprint({"out": str(out.resolve()), "config": config.model_dump(mode="json")})
        with tracked(root, f"sweep {out.name}", work) as parent:
            parent.tags({"kind": "sweep"})
            parent.dataset(index.name, index.sha256, str(index.root), "finetune")
            tracking = Tracking(root.uri, root.experiment_id, parent.run_id)
            page = compare_arms(config, index, archive, split, arms, out, resources, parent, tracking, {})
    say(f"report: {page}")


def run_evaluate_verb(
    model: Path, archive_root: Path, out: Path, subjects: Sequence[str] | None, tolerance_mm: float
) -> None:
    network, contract = load_model(model)
    archive = read_archive(archive_root)
    known = {case.subject for case in archive.cases}
    if unknown := sorted({*(subjects or ())} - known):
        raise InputError(f"--subjects: no person {unknown[0]!r} in {archive_root}; it has {len(known)} persons")
    cases = [c for c in archive.cases if c.label_path is not None and (subjects is None or c.subject in subjects)]
    if not cases:
        raise InputError(f"{archive_root}: no labelled case to score; labels belong into labelsTr")
    if archive.class_names != contract.class_names:
        raise InputError(
            f"{archive_root}: its classes are {list(archive.class_names)}, the model's {list(contract.class_names)}: "
            "scores would compare unlike things; give an archive with the model's classes, in their order"
        )
    scores = score_cases(network, cases, contract.class_names, contract.preprocess, contract.window_DHW, tolerance_mm)
    made_by = contract.made_by
    budget, arm, seed = int(made_by.get("budget", 1)), made_by.get("arm", "model"), int(made_by.get("seed", 0))
    rows = [ScoreRow.of(score, budget, arm, seed) for score in scores]
    write_scores(out, rows)
    table = [("class", "Dice", "HD95 mm", "surface Dice", "cases")]
    for name in contract.class_names[1:]:
        own = [row for row in rows if row.class_name == name]
        means = [sum(getattr(r, key) for r in own) / len(own) for key in ("dice", "hd95_mm", "surface_dice")]
        table.append((name, f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:.3f}", str(len(own))))
    show_table(f"{len(cases)} cases", table)
    say(f"scores: {out}")


def run_report_verb(folder: Path) -> None:
    rows = read_scores(folder / "report" / "scores.csv")
    page = write_report(rows, ReportInputs.load(folder / INPUTS), folder, folder / "report")
    say(f"report: {page}")
