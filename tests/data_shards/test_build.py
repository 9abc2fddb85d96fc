import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_shards.archive.layout import read_archive
from data_shards.build import BuildConfig, build, build_shard, finish_build, plan_of
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.verify import verify
from tests.data_shards.helpers import KEEP_ALL, decode, place_code, stored_code, write_archive, write_nifti

SHAPE = (8, 9, 10)
FORMATS = ["zarr", "webdataset"]


def config(format: str = "webdataset", **settings) -> BuildConfig:
    return BuildConfig(**{"format": format, "volumes_per_shard": 2, "preprocess": KEEP_ALL, **settings})


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "archive", [SHAPE] * 5)


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_a_build_holds_every_case_and_verifies(archive, tmp_path, format):
    index = build(archive, tmp_path / "out", config(format))
    assert [v.case for v in index.volumes] == [f"case_{i}" for i in range(5)]
    assert len(index.shards) == 3 and index.quarantined == () and index.duplicates == ()
    assert ShardIndex.load(tmp_path / "out") == index and verify(tmp_path / "out", deep=True) == []
    for i, volume in enumerate(index.volumes):
        image = open_reader(index).read(i)
        assert np.array_equal(decode(index, i, image)[0], stored_code(SHAPE, i))
        assert volume.mean == pytest.approx(image.mean(), abs=1e-6) and volume.std == pytest.approx(
            image.std(), abs=1e-6
        )
        assert volume.minimum_C == (image.min(),) and volume.shape_CDHW == image.shape
        assert volume.label_classes == (0, 1, 2) and volume.source == f"imagesTr/case_{i}.nii.gz"


def test_nothing_of_this_machine_is_in_the_index(archive, tmp_path):
    write_nifti(archive / "imagesTr/case_3.nii.gz", np.full(SHAPE, np.nan, np.float32))
    build(archive, tmp_path / "out", config(max_quarantined_share=0.5))
    assert str(tmp_path) not in (tmp_path / "out/index.json").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_archive_elsewhere_gives_the_same_index(archive, tmp_path, format):
    one = build(archive, tmp_path / "one", config(format))
    two = build(write_archive(tmp_path / "copy", [SHAPE] * 5), tmp_path / "two", config(format))
    assert one.sha256 == two.sha256 and one.shards == two.shards


def test_bad_scans_are_quarantined_with_file_and_reason_and_the_rest_goes_on(archive, tmp_path):
    (archive / "imagesTr/case_0.nii.gz").write_bytes((archive / "imagesTr/case_0.nii.gz").read_bytes()[:300])
    write_nifti(archive / "imagesTr/case_1.nii.gz", np.full(SHAPE, np.nan, np.float32))
    write_nifti(archive / "labelsTr/case_2.nii.gz", np.zeros((8, 9, 9), np.uint8))
    write_nifti(archive / "imagesTr/case_3.nii.gz", place_code(SHAPE)[:, :, 0])
    index = build(archive, tmp_path / "out", config(max_quarantined_share=0.8))
    assert [v.case for v in index.volumes] == ["case_4"]
    assert np.array_equal(decode(index, 0, open_reader(index).read(0))[0], stored_code(SHAPE, 4))
    reasons = {(q.case, q.path): q.reason for q in index.quarantined}
    for key, words in {
        ("case_0", "imagesTr/case_0.nii.gz"): "can't be read",
        ("case_1", "imagesTr/case_1.nii.gz"): "NaN",
        ("case_2", "labelsTr/case_2.nii.gz"): "label shape",
        ("case_3", "imagesTr/case_3.nii.gz"): "not a 3-D volume",
    }.items():
        assert words in reasons.pop(key)
    assert not reasons and verify(tmp_path / "out", deep=True) == []


def test_too_many_bad_scans_fail_the_build_naming_the_first(archive, tmp_path):
    write_nifti(archive / "imagesTr/case_3.nii.gz", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputError, match=r"1 of 5 scans.*share of 0\.1.*imagesTr/case_3\.nii\.gz: 720 of 720 voxels"):
        build(archive, tmp_path / "out", config())
    assert not (tmp_path / "out/index.json").exists()
    build(archive, tmp_path / "out", config(max_quarantined_share=0.2))


def test_a_build_with_no_usable_scan_fails_at_any_limit(tmp_path):
    archive = write_archive(tmp_path / "archive", [SHAPE])
    (archive / "imagesTr/case_0.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="case_0"):
        build(archive, tmp_path / "out", config(max_quarantined_share=1.0))


def test_a_scan_with_another_number_of_channels_is_quarantined(archive, tmp_path):
    both = np.stack([place_code(SHAPE)] * 2, axis=-1)
    write_nifti(archive / "imagesTr/case_2.nii.gz", both)
    index = build(archive, tmp_path / "out", config(max_quarantined_share=0.5))
    assert "has 2 channels, the archive names 1" in index.quarantined[0].reason


def test_equal_scans_are_stored_once_and_listed_preferring_the_labelled_one(archive, tmp_path):
    write_nifti(archive / "imagesTs/a_copy_of_2.nii", place_code(SHAPE, 2).astype(np.float32))
    write_nifti(archive / "imagesTr/case_4.nii.gz", place_code(SHAPE, 1))
    index = build(archive, tmp_path / "out", config())
    assert [v.case for v in index.volumes] == ["case_0", "case_1", "case_2", "case_3"]
    assert index.duplicates == (("a_copy_of_2", "case_2"), ("case_4", "case_1"))
    assert len({v.voxel_sha256 for v in index.volumes}) == 4
    assert index.aliases == (), "whose only scan is left out is nobody any more"


def test_two_persons_with_one_scan_are_named_where_both_have_others(archive, tmp_path):
    for path, like in (("imagesTr/case_4", 1), ("imagesTs/case_5", 2), ("imagesTs/case_6", 6)):
        write_nifti(archive / f"{path}.nii.gz", place_code(SHAPE, like))
    # y and x share case_1's voxels; z's two copies are z's own
    persons = {"case_0": "y", "case_4": "y", "case_1": "x", "case_2": "z", "case_5": "z", "case_6": "z"}
    (archive / "subjects.json").write_text(json.dumps(persons))
    index = build(archive, tmp_path / "out", config())
    assert index.duplicates == (("case_4", "case_1"), ("case_5", "case_2"))
    assert index.aliases == (("x", "y"),)
    assert ShardIndex.load(tmp_path / "out") == index


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_build_touches_no_shard(archive, tmp_path, format):
    first = build(archive, tmp_path / "out", config(format))
    before = files(tmp_path / "out")
    results = []

    def spying_map(fn, plans):
        results.extend(map(fn, plans))
        return reversed(results)  # results may come in any order

    assert build(archive, tmp_path / "out", config(format), spying_map) == first
    assert [r.reused for r in results] == [True] * 3
    after = files(tmp_path / "out")
    assert {n: t for n, t in after.items() if "shard-" in n} == {n: t for n, t in before.items() if "shard-" in n}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        pytest.param(lambda a, o: (o / "shard-00001.tar").unlink(), [True, False, True], id="shard gone"),
        pytest.param(lambda a, o: (o / "shard-00001.tar").write_bytes(b"x"), [True, False, True], id="shard cut"),
        pytest.param(
            lambda a, o: (o / ".build/shard-00001.tar.json").write_text("{"), [True, False, True], id="result garbled"
        ),
        pytest.param(
            lambda a, o: write_nifti(a / "labelsTr/case_4.nii.gz", np.ones(SHAPE, np.uint8)),
            [True, True, False],
            id="source changed",
        ),
        pytest.param(
            lambda a, o: (a / "subjects.json").write_text(json.dumps({"case_0": "anna"})),
            [False, True, True],
            id="person changed",
        ),
    ],
)
def test_only_what_changed_is_built_again(archive, tmp_path, change, reused):
    out = tmp_path / "out"
    build(archive, out, config())
    change(archive, out)
    read = read_archive(archive)
    results = [build_shard(plan, out, config()) for plan in plan_of(read, out, config())]
    assert [r.reused for r in results] == reused
    assert not (out / "index.json").exists()  # an index that no longer fits is taken away first
    finish_build(results, out, read, config())
    assert verify(out, deep=True) == []


def test_another_setting_builds_everything_again_and_clears_away_the_old(archive, tmp_path):
    out = tmp_path / "out"
    build(archive, out, config("zarr"))
    index = build(archive, out, config("webdataset", volumes_per_shard=5))
    rows = f"volumes-{index.volumes.sha256[:12]}.parquet"
    assert sorted(p.name for p in out.iterdir()) == [
        ".build", "catalogue.parquet", "index.json", "shard-00000.tar", rows,
    ]  # fmt: skip
    assert index.shards[0].bytes == (out / "shard-00000.tar").stat().st_size
    again = build(archive, out, config(preprocess={"spacing_mm": (2, 2, 2)}))
    assert again.volumes[0].shape_CDHW == (1, 5, 4, 4) and verify(out, deep=True) == []


def test_shards_can_be_built_in_other_processes(archive, tmp_path):
    with ProcessPoolExecutor(2) as pool:
        index = build(archive, tmp_path / "out", config("zarr"), pool.map)
    assert index.sha256 == build(archive, tmp_path / "alone", config("zarr")).sha256
    plan = plan_of(read_archive(archive), tmp_path / "none", config())[0]
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_link_to_nowhere_is_quarantined(archive, tmp_path):
    # as git-annex and datalad leave them for files that were not fetched
    header = json.loads((archive / "dataset.json").read_text())
    del header["training"]
    (archive / "dataset.json").write_text(json.dumps(header))
    victim = sorted((archive / "imagesTr").iterdir())[0]
    victim.unlink()
    victim.symlink_to(tmp_path / "never-fetched")
    index = build(archive, tmp_path / "out", config(max_quarantined_share=0.9))
    assert [entry.case for entry in index.quarantined] == [victim.name.removesuffix(".nii.gz")]
    assert index.volumes
