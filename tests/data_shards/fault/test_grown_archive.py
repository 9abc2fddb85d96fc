"""An archive that grows, shrinks or changes after it was built: only what is touched is built again."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import build
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.verify import verify
from tests.data_shards.fault.outcome import FORMATS, cases_in_results, cases_on_disk, config, times
from tests.data_shards.helpers import decode, place_code, stored_code, write_nifti

SHAPE = (8, 9, 10)


@pytest.fixture
def archive(tmp_path) -> Path:
    """Seven scans, of which 1, 3, ... are labelled, in an archive that lists none: files come and go by themselves."""
    root = tmp_path / "archive"
    root.mkdir()
    header = {"name": "Growing", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "part"}}
    (root / "dataset.json").write_text(json.dumps(header))
    for i in range(7):
        add(root, i)
    return root


def add(root: Path, i: int, who: int | None = None) -> None:
    write_nifti(root / f"imagesTr/scan_{i:02d}.nii.gz", place_code(SHAPE, i if who is None else who))
    if i % 2:
        write_nifti(root / f"labelsTr/scan_{i:02d}.nii.gz", np.eye(10, dtype=np.uint8)[None, :9].repeat(8, axis=0))


def remove(root: Path, i: int) -> None:
    for path in root.rglob(f"scan_{i:02d}.nii.gz"):
        path.unlink()


def assert_holds(index: ShardIndex, expected: dict[str, int]) -> None:
    """Each case once, in exactly one shard, with the voxels of its code; no other case anywhere."""
    assert sorted(v.case for v in index.volumes) == sorted(expected)
    assert cases_on_disk(index.root) == cases_in_results(index.root) == dict.fromkeys(expected, 1)
    for i, volume in enumerate(index.volumes):
        voxels = decode(index, i, open_reader(index).read(i))
        assert np.array_equal(voxels[0], stored_code(SHAPE, expected[volume.case])), volume.case
    assert verify(index.root, deep=True) == [] and ShardIndex.load(index.root) == index


def scans(numbers, **others: int) -> dict[str, int]:
    return {f"scan_{i:02d}": i for i in numbers} | others


def shard(i: int, format: str) -> str:
    return f"shard-{i:05d}.{'zarr' if format == 'zarr' else 'tar'}"


def changed_shards(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Shards of which any file was touched, is gone or is new."""
    return {path.split("/")[0] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("change", "expected", "touched"),
    [
        pytest.param(lambda a: None, scans(range(7)), set(), id="nothing"),
        pytest.param(lambda a: [add(a, i) for i in (8, 9, 10)], scans([*range(7), 8, 9, 10]), {4, 5}, id="added"),
        pytest.param(lambda a: add(a, 2, who=50), scans(range(7), scan_02=50), {1}, id="changed"),
        pytest.param(lambda a: remove(a, 4), scans([0, 1, 2, 3, 5, 6]), {2}, id="removed"),
        pytest.param(lambda a: [remove(a, 2), remove(a, 3)], scans([0, 1, 4, 5, 6]), {1}, id="a whole shard removed"),
        pytest.param(
            lambda a: [remove(a, 0), add(a, 7)], scans(range(1, 8)), {0}, id="one removed, one added in its place"
        ),
        pytest.param(
            lambda a: [remove(a, 1), add(a, 2, who=50), add(a, 7)],
            scans([0, 2, 3, 4, 5, 6, 7], scan_02=50),
            {0, 1},
            id="removed, changed and added",
        ),
        pytest.param(
            lambda a: (a / "labelsTr/scan_03.nii.gz").unlink(), scans(range(7)), {1}, id="only a label removed"
        ),
    ],
)
def test_only_the_shards_of_what_changed_are_touched(archive, tmp_path, format, change, expected, touched):
    out = tmp_path / "out"
    assert_holds(build(archive, out, config(format)), scans(range(7)))
    before = times(out)
    change(archive)
    index = build(archive, out, config(format))
    assert_holds(index, expected)
    assert changed_shards(before, times(out)) == {shard(i, format) for i in touched}
    assert build(archive, out, config(format)).sha256 == index.sha256


def test_a_random_history_ends_with_every_case_once_whatever_happened_on_the_way(archive, tmp_path):
    """Scans come, go, come back and change; some builds stop half way. Drawn from a seed."""
    rng, now, out = np.random.default_rng(5), {i: i for i in range(7)}, tmp_path / "out"
    hidden = archive.with_name("hidden")
    for _ in range(25):
        for i in rng.permutation(10)[:3].tolist():
            paths = [path.relative_to(archive) for path in archive.rglob(f"scan_{i:02d}.nii.gz")]
            away = [path.relative_to(hidden) for path in hidden.rglob(f"scan_{i:02d}.nii.gz")]
            if paths and rng.random() < 0.5:  # put aside: it may come back with the times it had
                move(archive, hidden, paths)
                del now[i]
            elif paths:
                now[i] = int(rng.integers(100, 9999))
                add(archive, i, now[i])
            elif away:
                move(hidden, archive, away)
                now[i] = int((archive / f"who_{i}").read_text()) if (archive / f"who_{i}").exists() else i
            else:
                now[i] = i
                add(archive, i)
            if i in now:
                (archive / f"who_{i}").write_text(str(now[i]))
        if rng.random() < 0.5:
            stop_after(int(rng.integers(1, 4)), archive, out)
        else:
            expected = {f"scan_{i:02d}": who for i, who in now.items()}
            assert_holds(build(archive, out, config("webdataset")), expected)


def move(source: Path, target: Path, paths: list[Path]) -> None:
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).rename(target / path)


def stop_after(num_shards: int, archive: Path, out: Path) -> None:
    """A build that is stopped when it has built so many shards."""

    def stopping_map(fn, plans):
        for result in map(fn, plans):
            nonlocal num_shards
            num_shards -= not result.reused
            if num_shards < 0:
                raise KeyboardInterrupt
            yield result

    try:
        build(archive, out, config("webdataset"), stopping_map)
    except KeyboardInterrupt:
        return
