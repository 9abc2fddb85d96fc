"""A pickle under the name of any file of an archive or of shards is refused in one line, and not opened."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numcodecs.pickles
import pyarrow as pa
import pytest

from data_shards.archive.layout import read_archive
from data_shards.build import RESULTS_FOLDER, BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.encoding import chunk_key
from data_shards.formats.files import digest
from data_shards.formats.index import ShardIndex, ShardInfo
from data_shards.formats.reader import open_reader
from data_shards.formats.volumes import VolumeTable
from data_shards.formats.webdataset_shards import decode_zarr
from data_shards.verify import verify
from tests.data_shards.helpers import KEEP_ALL, build_places, write_archive
from tests.trap import FORMS, Trap, trapped

SHAPES = [(8, 9, 10), (7, 12, 6)]


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardIndex]:
    return {name: build_places(tmp_path_factory.mktemp(name), SHAPES, name) for name in ("zarr", "webdataset")}


def copy_of(index: ShardIndex, folder: Path) -> ShardIndex:
    shutil.copytree(index.root.parent, folder)
    return ShardIndex.load(folder / "shards")


def with_hashes_made_anew(index: ShardIndex) -> None:
    """The index says of every shard what lies there now, as somebody with bad intent would see to."""
    shards = tuple(ShardInfo(shard.name, *digest(index.root / shard.name)) for shard in index.shards)
    replace(index, shards=shards).save(index.root)


def one_line(use: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        use()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_index_or_as_its_rows_is_refused(built, tmp_path, trap, form):
    index, content = copy_of(built["zarr"], tmp_path / "copy"), trapped(trap, form)
    rows = VolumeTable(built["zarr"].volumes.table)
    rows.serialized = pa.py_buffer(content)  # so that the header states the pickle's own hash
    replace(index, volumes=rows).save(index.root)
    one_line(lambda: ShardIndex.load(index.root))
    (index.root / "index.json").write_bytes(content)
    one_line(lambda: ShardIndex.load(index.root))
    assert not trap.is_sprung


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_pickle_as_a_shard_is_a_damaged_shard(built, tmp_path, trap, format, form):
    index = copy_of(built[format], tmp_path / "copy")
    volume = index.volumes[0]
    path = index.root / volume.shard
    if format == "zarr":
        path = path / volume.case / "image" / chunk_key("image")
    path.write_bytes(trapped(trap, form))
    with_hashes_made_anew(index)
    one_line(lambda: open_reader(ShardIndex.load(index.root)).read(0))
    damages = verify(index.root, deep=True)
    assert damages and all("\n" not in damage.reason for damage in damages)
    assert not trap.is_sprung


@pytest.mark.parametrize("member", ["json", "image.zarr.zip", "label.zarr.zip"])
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_a_member_of_a_tar_is_found_and_not_opened(built, tmp_path, trap, member, form):
    index = copy_of(built["webdataset"], tmp_path / "copy")
    path, content = index.root / index.shards[0].name, io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=content, mode="w") as new:
        for info in old:
            file = old.extractfile(info)
            assert file is not None
            data = trapped(trap, form) if info.name == f"case_0.{member}" else file.read()
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    path.write_bytes(content.getvalue())
    damages = verify(index.root, deep=True)
    assert any(damage.case == "case_0" for damage in damages)
    assert not trap.is_sprung


def test_a_pickle_as_metadata_of_a_zarr_shard_is_found_and_not_opened(built, tmp_path, trap):
    index = copy_of(built["zarr"], tmp_path / "copy")
    case = index.root / index.volumes[0].shard / "case_0"
    for path in (case / "zarr.json", case / "image" / "zarr.json"):
        path.write_bytes(trapped(trap, "pickle"))
    damages = verify(index.root, deep=True)
    assert any(damage.case == "case_0" and "can't be decoded" in damage.reason for damage in damages)
    assert not trap.is_sprung


@pytest.mark.parametrize(
    "metadata",
    [
        {"dtype": "|O", "filters": [{"id": "pickle"}]},
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}},
        {"dtype": "|u1", "filters": None, "compressor": {"id": "pickle"}},
    ],
    ids=["objects", "pickled texts", "compressed by pickle", "bytes"],
)
def test_a_member_that_asks_for_the_pickle_codec_is_refused_even_where_that_is_switched_on(monkeypatch, trap, metadata):
    """zarr 2 knows such a codec; numcodecs has it switched off, unless an environment variable says otherwise."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "compressor": None, "fill_value": 0, "order": "C"}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(".zarray", json.dumps(array | metadata))
        archive.writestr("0", trapped(trap, "pickle"))
    with pytest.raises(Exception):  # noqa: B017 (whatever zarr raises)
        decode_zarr("a.image.zarr.zip", packed.getvalue())
    assert not trap.is_sprung


def test_a_pickle_as_a_stored_result_is_built_anew(built, tmp_path, trap):
    index = copy_of(built["zarr"], tmp_path / "copy")
    (stored,) = (index.root / RESULTS_FOLDER).glob("shard-*.json")
    stored.write_bytes(trapped(trap, "pickle"))
    config = BuildConfig(format="zarr", preprocess=KEEP_ALL, volumes_per_shard=2)
    assert build(tmp_path / "copy/archive", index.root, config) == index
    assert not trap.is_sprung


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "dataset.json"])
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_a_file_of_an_archive_is_refused(tmp_path, trap, name, form):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / name).write_bytes(trapped(trap, form))
    one_line(lambda: build(tmp_path / "scans", tmp_path / "shards", BuildConfig(preprocess=KEEP_ALL)))
    assert not trap.is_sprung


def test_a_pickle_as_subjects_json_is_refused(tmp_path, trap):
    root = write_archive(tmp_path / "archive", SHAPES)
    (root / "subjects.json").write_bytes(trapped(trap, "pickle"))
    one_line(lambda: read_archive(root))
    assert not trap.is_sprung
