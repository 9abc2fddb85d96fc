"""What a job's result depends on, and which scans test it; nothing runs here."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.grid import Comparison, job_stage
from cluster.reporting import check_encoder, check_overlap, overlap
from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.handover import POOL, PoolScan
from maetrain.evaluate.study import Study, read_study, test_study
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.plan import pretrain_pool
from maetrain.recipes.load import load_recipe

from ..maetrain.small import SMALL, hand_over

JOB = FinetuneJob(budget=1, arm="scratch", seed=0, subjects=("person_000",))
test_study.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def key_of(small_archive: Path, tmp_path: Path, index: ShardIndex, split: Split) -> Callable[..., str]:
    """The key of a job's stage under other settings."""
    archive = read_archive(small_archive)

    def key(*overrides: str, job: FinetuneJob = JOB, elsewhere: dict[str, Study] | None = None) -> str:
        config = load_recipe("demo", overrides)
        arms = {job.arm: [job.handover] if job.handover else []}
        comparison = Comparison(config, index, archive, split, arms, elsewhere or {}, tmp_path)
        return job_stage(comparison, job).key

    return key


@pytest.mark.parametrize(
    "override",
    [
        "finetune.steps=7",
        "finetune.augment.noise_std=0.7",
        "model.drop_path=0.1",
        "evaluate.tolerance_mm=2",
        "sweep.max_test_cases=1",
        "sweep.ranks_per_job=2",
    ],
)
def test_what_shapes_a_jobs_scores_makes_it_another_job(key_of: Callable[..., str], override: str) -> None:
    assert key_of() != key_of(override)


def test_other_cases_from_elsewhere_make_it_another_job(key_of: Callable[..., str], small_archive: Path) -> None:
    study = read_study(read_archive(small_archive).cases, 3)
    fewer = replace(study, cases=study.cases[1:])
    assert len({key_of(), key_of(elsewhere={"there": study}), key_of(elsewhere={"there": fewer})}) == 3


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.steps=7",
        "sweep.budgets=[1]",
        "sweep.retries=9",
        "title=x",
        "cluster.pretrain_workers=1",
        "finetune.log_every=7",
        "finetune.pretrained_learning_rate=0.1",  # the job starts from random weights
        "finetune.pretrained_layer_decay=0.5",
        "finetune.pretrained_channels=mean",
    ],
)
def test_what_does_not_leaves_it_the_same_job(key_of: Callable[..., str], override: str) -> None:
    assert key_of() == key_of(override)


@pytest.mark.parametrize(
    ("overrides", "fewest"),
    [
        ((), 1),
        (("sweep.budgets=[2,4]",), 2),
        (("sweep.budgets=[2,4]", "finetune.validation_share=0.25"), 1),
        (("sweep.budgets=[4]", "sweep.learning_rates=[1e-3]"), 3),
        (("sweep.budgets=[4]", "sweep.learning_rates=[1e-3]", "sweep.trial_share=0.5"), 2),
    ],
)
def test_the_smallest_training_part_is_that_of_jobs_and_trials(
    small_archive: Path, index: ShardIndex, split: Split, tmp_path: Path, overrides: tuple[str, ...], fewest: int
) -> None:
    config, archive = load_recipe("demo", overrides), read_archive(small_archive)
    assert Comparison(config, index, archive, split, {"scratch": []}, {}, tmp_path).fewest == fewest


def test_the_rate_that_counts_is_the_one_it_trains_with(key_of: Callable[..., str]) -> None:
    chosen = JOB.model_copy(update={"learning_rate": 3e-3})
    assert key_of("finetune.learning_rate=3e-3") == key_of(job=chosen) == key_of("finetune.learning_rate=1", job=chosen)
    assert key_of(job=chosen) != key_of(job=JOB.model_copy(update={"learning_rate": 1e-3}))


def test_a_trial_does_not_depend_on_the_test_set(key_of: Callable[..., str]) -> None:
    trial = JOB.model_copy(update={"is_trial": True, "learning_rate": 1e-3})
    assert key_of(job=trial) == key_of("evaluate.tolerance_mm=2", "sweep.max_test_cases=1", job=trial)


def test_a_handover_counts_by_its_weights_and_not_by_its_folder(key_of: Callable[..., str], tmp_path: Path) -> None:
    one = hand_over(tmp_path / "one", [])
    (tmp_path / "copy").mkdir()
    for path in one.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    other = hand_over(tmp_path / "other", [])
    keys = [key_of(job=JOB.model_copy(update={"handover": str(f)})) for f in (one, tmp_path / "copy", other)]
    assert keys[0] == keys[1] != keys[2]


def test_other_encoders_or_studies_in_the_same_folder_are_another_comparison(
    small_archive: Path, index: ShardIndex, split: Split, tmp_path: Path
) -> None:
    archive, config = read_archive(small_archive), load_recipe("demo")
    study = read_study(archive.cases, 3)

    def work(folder: Path, elsewhere: dict[str, Study] | None = None) -> str:
        arms = {"scratch": [], "mae": [str(folder)]}
        return Comparison(config, index, archive, split, arms, elsewhere or {}, tmp_path).work

    one, other = (hand_over(tmp_path / name, []) for name in ("one", "other"))
    assert work(one) == work(one)
    assert len({work(one), work(other), work(one, {"there": study})}) == 3


def test_test_cases_are_all_scans_of_the_test_persons(small_archive: Path, index: ShardIndex, split: Split) -> None:
    cases = test_study(read_archive(small_archive), index, split).cases
    assert {case.subject for case in cases} == set(split.test)
    assert len(cases) == sum(volume.subject in split.test for volume in index.volumes)
    assert test_study(read_archive(small_archive), index, split, at_most=1).cases == cases[:1]


def test_an_archive_that_is_not_the_shards_own_is_refused(small_archive: Path, index: ShardIndex, split: Split) -> None:
    archive = read_archive(small_archive)
    gone = next(case for case in archive.cases if case.subject in split.test)
    object.__setattr__(archive, "cases", tuple(case for case in archive.cases if case is not gone))
    with pytest.raises(InputError, match=f"test case {gone.case} .* give the shards' archive"):
        test_study(archive, index, split)


def test_an_archive_with_other_classes_is_refused(small_archive: Path, index: ShardIndex, split: Split) -> None:
    archive = read_archive(small_archive)
    object.__setattr__(archive, "class_names", archive.class_names[:1] + archive.class_names[:0:-1])
    with pytest.raises(InputError, match="its classes are not those"):
        test_study(archive, index, split)


def scans_of(index: ShardIndex, subjects: tuple[str, ...]) -> list[PoolScan]:
    return [
        PoolScan(case=v.case, subject=v.subject, voxel_sha256=v.voxel_sha256)
        for v in index.volumes
        if v.subject in subjects
    ]


def test_an_honest_pool_does_not_overlap(tmp_path: Path, index: ShardIndex, split: Split) -> None:
    found = check_overlap(index, split, hand_over(tmp_path, scans_of(index, pretrain_pool(index, split))))
    assert (found.by_person, found.by_voxel_hash) == (0, 0)


def test_a_test_person_in_the_pool_is_found_by_name_and_by_voxels(
    tmp_path: Path, index: ShardIndex, split: Split
) -> None:
    seen = scans_of(index, split.test[:1])
    found = overlap(index, split.test, seen)
    assert (found.by_person, found.by_voxel_hash) == (1, len(seen))
    disguised = [scan.model_copy(update={"subject": "somebody else", "case": "x"}) for scan in seen]
    found = overlap(index, split.test, disguised)
    assert (found.by_person, found.by_voxel_hash) == (0, len(seen))
    folder = hand_over(tmp_path, disguised)
    assert (folder / POOL).is_file()
    with pytest.raises(InputError, match="pretrain with the same split"):
        check_overlap(index, split, folder)


def test_an_encoder_for_other_channels_passes_where_the_settings_say_how_it_fits(
    tmp_path: Path, index: ShardIndex, split: Split
) -> None:
    two = {"architecture": SMALL.model_copy(update={"in_channels": 2}), "channel_names": ("T1", "T2")}
    folder = hand_over(tmp_path, [], preprocess=index.preprocess.model_dump(mode="json"), **two)
    for how in ("refuse", "mean"):
        config = load_recipe("demo", (f"finetune.pretrained_channels={how}",)).model_copy(update={"model": SMALL})
        refused = pytest.raises(InputError, match="set finetune.pretrained_channels=mean or repeat")
        with refused if how == "refuse" else nullcontext():
            check_encoder(index, split, config, folder)
