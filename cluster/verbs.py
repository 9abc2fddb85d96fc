"""The verbs of the command line that are more than one call."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.comparison import compare_arms
from cluster.console import say, show_table
from cluster.demo import EXPERIMENT, LOCK, tracking_uri
from cluster.elsewhere import read_elsewhere
from cluster.grid import Comparison
from cluster.order import SweepOrder
from cluster.pipeline import fit_channels, make_setup, make_untrained, pretrain_and_export
from cluster.pretrain import check_setup, fit_workers
from cluster.reporting import check_encoder
from cluster.session import ray_session
from cluster.tracked import tracked
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import Archive, ArchiveCase, read_archive
from data_shards.errors import InputError
from data_shards.formats.files import is_remote, locked, write_text
from data_shards.formats.index import ShardIndex
from data_shards.labels import Labels
from data_shards.splits import Split
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.checkpoint.handover import read_pool
from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.predictions import find_predictions, score_predictions
from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.evaluate.study import read_study
from maetrain.evaluate.test_set import score_scans
from maetrain.finetune.plan import pretrain_pool, split_of
from maetrain.recipes.config import SCRATCH, UNTRAINED, RunConfig
from maetrain.report.material import read_material
from maetrain.report.page import write_report
from maetrain.report.results import analyse
from maetrain.tracking.mlflow_tracker import open_experiment
from maetrain.tracking.work import Tracking


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
    tracking = _tracking(out, uri)  # a wrong one is told before Ray starts
    with ray_session(address, config.cluster.object_store_mib) as resources:
        config = fit_workers(config, resources)
        check_setup(setup, index.sha256, config.cluster, resources)
        work = fingerprint({"run_dir": setup.run_dir})
        with tracked(tracking, f"pretrain {out.name}", work) as tracker:
            tracker.tags({"kind": "pretrain", "pretrain_run": out.name})
            tracker.params({"model": setup.model.model_dump(), "pretrain": setup.pretrain.model_dump()})
            tracker.dataset(index.name, index.sha256, str(index.root), "pretrain")
            handover = pretrain_and_export(setup, config, index, resources, tracker)
    say(f"encoder: {handover}")


def run_sweep_verb(order: SweepOrder, out: Path, address: str | None, uri: str | None) -> None:
    order = order.tracked_at(uri)
    config = order.config
    index = ShardIndex.load(order.shards)
    identity = read_identity(config.shards.privacy, os.environ)
    archive = read_archive(order.data, identity)
    config = fit_channels(config, index)
    split = _split(config, index)
    with locked(out / LOCK):
        arms = _arms(config, index, split, order.handovers, out)
        pools = [scan for encoders in arms.values() for folder in encoders for scan in read_pool(Path(folder))]
        elsewhere = {
            name: read_elsewhere(name, folder, index, split, pools, identity)
            for name, folder in order.elsewhere.items()
        }
        comparison = Comparison(config, index, archive, split, arms, elsewhere, out)
        comparison.check()
        root = _tracking(out, order.tracking_uri)
        order.save(out)
        with ray_session(address, config.cluster.object_store_mib) as resources:
            work = fingerprint({"out": str(out.resolve()), "config": config.model_dump(mode="json")})
            with tracked(root, f"sweep {out.name}", work) as parent:
                parent.tags({"kind": "sweep"})
                parent.dataset(index.name, index.sha256, str(index.root), "finetune")
                tracking = Tracking(root.uri, root.experiment_id, parent.run_id)
                compare_arms(comparison, resources, parent, tracking, {})


def _arms(
    config: RunConfig, index: ShardIndex, split: Split, handovers: Mapping[str, Sequence[Path]], out: Path
) -> dict[str, list[str]]:
    """arm -> the folders of its encoders. InputError for an arm that has none, or one that does not fit."""
    arms: dict[str, list[str]] = {arm: [] for arm in config.sweep.arms}
    if unknown := sorted({*handovers} - {*arms}):
        raise InputError(
            f"--handover {unknown[0]}=...: no arm of that name; sweep.arms = {list(arms)}, add {unknown[0]} to it"
        )
    for arm in arms:
        if arm == SCRATCH:
            if arm in handovers:
                raise InputError(f"--handover {SCRATCH}=...: {SCRATCH} starts from random weights; name it otherwise")
            continue
        folders = handovers.get(arm) or (make_untrained(config, index, out) if arm == UNTRAINED else ())
        if not folders:
            others = ",".join(other for other in arms if other != arm)
            raise InputError(
                f"the arm `{arm}` needs an encoder: give --handover {arm}=FOLDER, or sweep.arms=[{others}]"
            )
        if len(folders) > len(config.sweep.seeds):
            raise InputError(
                f"--handover {arm}=...: {len(folders)} encoders for {len(config.sweep.seeds)} of sweep.seeds, which "
                "take one each: give more sweep.seeds, or fewer encoders"
            )
        for folder in folders:
            check_encoder(index, split, config, folder)
        arms[arm] = [str(folder.resolve()) for folder in folders]
    return arms


def run_evaluate_verb(
    model: Path, archive_root: Path, out: Path, subjects: Sequence[str] | None, tolerance_mm: float
) -> None:
    network, contract = load_model(model)
    archive, cases = _labelled_cases(archive_root, subjects)
    if archive.labels != contract.labels:
        raise InputError(
            f"{archive_root}: its classes are {list(archive.class_names)}, the model's {list(contract.class_names)}: "
            "scores would compare unlike things; give an archive with the model's classes, in their order"
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
    made_by = contract.made_by
    budget, arm, seed = int(made_by.get("budget", 1)), made_by.get("arm", "model"), int(made_by.get("seed", 0))
    _write_table(out, [ScoreRow.of(score, budget, arm, seed) for score in scores], contract.labels)


def run_predictions_verb(
    folder: Path,
    archive_root: Path,
    out: Path,
    subjects: Sequence[str] | None,
    tolerance_mm: float,
    job: tuple[int, str, int],
) -> None:
    """`job`: what the rows say of budget, arm and seed; the files can't tell."""
    archive, cases = _labelled_cases(archive_root, subjects)
    if len(archive.class_names) < 2:
        raise InputError(f"{archive_root}: no classes are named; add a dataset.json with labels")
    files = find_predictions(folder, cases)
    scores = score_predictions(files, cases, archive.labels, tolerance_mm)
    _write_table(out, [ScoreRow.of(score, *job) for score in scores], archive.labels)


def _labelled_cases(root: Path, subjects: Sequence[str] | None) -> tuple[Archive, list[ArchiveCase]]:
    """The archive, and its labelled cases of `subjects` (None: of all)."""
    archive = read_archive(root)
    known = {case.subject for case in archive.cases}
    if unknown := sorted({*(subjects or ())} - known):
        raise InputError(f"--subjects: no person {unknown[0]!r} in {root}; it has {len(known)} persons")
    cases = [c for c in archive.cases if c.label_path is not None and (subjects is None or c.subject in subjects)]
    if not cases:
        raise InputError(f"{root}: no labelled case to score; labels belong into labelsTr")
    return archive, cases


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
    material = read_material(folder)
    results = analyse(material.rows, material.inputs, arm=arm, elsewhere=material.elsewhere)
    page = write_report(material.rows, material.inputs, results, folder, out or folder / "report")
    say(f"report: {page}")
