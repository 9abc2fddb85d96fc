"""A name in a file that a stranger wrote never leads out of the file's own folder, for reading or for writing."""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.archive.layout import read_archive
from data_shards.build import RESULTS_FOLDER, BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.formats.volumes import VolumeTable
from data_shards.formats.webdataset_shards import decode_zarr
from data_shards.verify import verify
from tests.data_shards.helpers import KEEP_ALL, build_places, write_archive

SHAPES = [(8, 9, 10), (7, 12, 6)]
FORMATS = ["zarr", "webdataset"]
OUT = ["../x", "../../x", "/etc/passwd", "..", ".", "", "a/../../x", "..\\x", "C:\\x"]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path) -> str:
    """Why the shards in `folder` can't be read, in one line."""
    with pytest.raises(InputError) as caught:
        open_reader(ShardIndex.load(folder)).read(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_outside_of_its_folder_is_refused_though_all_hashes_fit(tmp_path, format):
    index = build_places(tmp_path, SHAPES, format)
    (shard,) = index.shards
    (index.root / shard.name).rename(tmp_path / shard.name)
    name = f"../{shard.name}"
    volumes = VolumeTable.of([replace(volume, shard=name) for volume in index.volumes])
    moved = replace(index, shards=(replace(shard, name=name),), volumes=volumes)
    moved.save(index.root)
    assert open_reader(moved).read(0).any(), "the planted shard is whole: nothing but its name can be refused"
    assert "garbled at shards.0.name" in refused(index.root)
    with pytest.raises(InputError, match=r"garbled at shards\.0\.name"):
        verify(index.root, deep=True)


@pytest.mark.parametrize("name", OUT)
def test_a_path_as_the_name_of_a_shard_is_refused(tmp_path, name):
    index = build_places(tmp_path, SHAPES)
    replace(index, shards=(replace(index.shards[0], name=name),)).save(index.root)
    assert "garbled at shards.0.name" in refused(index.root)


@pytest.mark.parametrize("column", ["shard", "case"])
@pytest.mark.parametrize("name", OUT)
def test_a_path_in_the_rows_is_refused_whatever_row_is_asked_for(tmp_path, column, name):
    index = build_places(tmp_path, SHAPES)
    first, last = index.volumes
    replace(index, volumes=VolumeTable.of([first, replace(last, **{column: name})])).save(index.root)
    assert f"a {column} that is no plain name" in refused(index.root)
    for use in (list, lambda volumes: volumes[0], lambda volumes: volumes.column(column), lambda v: v.table):
        with pytest.raises(InputError, match="no plain name"):
            use(ShardIndex.load(index.root).volumes)


def test_a_case_that_is_a_path_to_a_whole_array_is_refused(tmp_path):
    index = build_places(tmp_path, SHAPES)
    first, last = index.volumes
    (index.root / first.shard / first.case).rename(tmp_path / "planted")
    planted = replace(first, case="../../planted")
    moved = replace(index, volumes=VolumeTable.of([planted, last]))
    assert open_reader(moved).read(0).any(), "what is planted can be read: nothing but its name can be refused"
    moved.save(index.root)
    assert "a case that is no plain name" in refused(index.root)


@pytest.mark.parametrize("format", FORMATS)
def test_a_stored_result_can_not_say_where_the_next_build_writes(tmp_path, format):
    """As if the shard that the result tells of had been lost: it would be built anew, under the name it gives."""
    index = build_places(tmp_path, SHAPES, format)
    (shard,) = index.shards
    (stored,) = (index.root / RESULTS_FOLDER).glob("shard-*.json")
    result = json.loads(stored.read_text().split("\n", 1)[1])
    ending = Path(shard.name).suffix
    for name in (f"../planted{ending}", str(tmp_path / f"planted{ending}"), f"planted{ending}"):
        text = json.dumps(result | {"name": name, "shard": None})
        stored.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        config = BuildConfig(format=format, preprocess=KEEP_ALL, volumes_per_shard=2)
        assert build(tmp_path / "archive", index.root, config) == index
        assert not list(tmp_path.rglob("planted*")) and {p.name for p in tmp_path.iterdir()} == {"archive", "shards"}


def hostile_members(target: Path) -> list[tarfile.TarInfo]:
    """Members that an unpacker would follow out of its folder."""
    members = []
    for name in ("../planted", str(target), "a/../../planted", "..\\planted"):
        members.append(tarfile.TarInfo(name))
        members[-1].size = 4
    for kind, name, link in (
        (tarfile.SYMTYPE, "case_0.json", str(target)),
        (tarfile.SYMTYPE, "case_0.image.zarr.zip", "../../secret"),
        (tarfile.LNKTYPE, "case_1.json", str(target)),
        (tarfile.FIFOTYPE, "case_1.image.zarr.zip", ""),
    ):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        members.append(member)
    return members


def test_members_of_a_tar_are_never_unpacked_and_its_links_not_followed(tmp_path):
    index = build_places(tmp_path, SHAPES, "webdataset")
    secret = tmp_path / "secret"
    secret.write_text('{"case": "case_0"}')
    path = index.root / index.shards[0].name
    whole, first = path.read_bytes(), io.BytesIO()
    with tarfile.open(fileobj=first, mode="w") as tar:
        for member in hostile_members(secret):
            tar.addfile(member, io.BytesIO(b"evil") if member.size else None)
    for content in (first.getvalue() + whole, whole + first.getvalue()):  # before and behind the right ones
        path.write_bytes(content)
        before = everything(tmp_path)
        damages = verify(index.root, deep=True)
        assert damages and {damage.shard for damage in damages} == {path.name}
        assert not any("evil" in damage.reason or secret.read_text() in damage.reason for damage in damages)
        assert everything(tmp_path) == before


def test_names_in_the_zip_of_a_member_are_keys_and_no_paths(tmp_path, monkeypatch):
    index = build_places(tmp_path, SHAPES, "webdataset")
    with tarfile.open(index.root / index.shards[0].name) as tar:
        member = tar.extractfile("case_0.image.zarr.zip")
        assert member is not None
        with zipfile.ZipFile(member) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {"../planted": b"evil", str(tmp_path / "planted"): b"evil", **parts}.items():
            archive.writestr(name, content)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    decoded = decode_zarr("case_0.image.zarr.zip", packed.getvalue())
    assert decoded is not None and decoded.shape == index.volumes[0].shape_CDHW
    assert not list(tmp_path.rglob("planted"))


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("name", ["../other/imagesTr/case_0.nii.gz", "imagesTr/../../other/imagesTr/case_0.nii.gz", ""])
def test_an_archive_that_lists_a_scan_outside_of_itself_is_refused(tmp_path, what, name):
    write_archive(tmp_path / "other", SHAPES)
    root = write_archive(tmp_path / "archive", SHAPES)
    planted = name or str(tmp_path / "other/imagesTr/case_0.nii.gz")
    assert (root / planted).is_file(), "it is there: nothing but its place can be refused"
    header = json.loads((root / "dataset.json").read_text())
    header["training"][1][what] = planted
    (root / "dataset.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="leads out of .*: put the file, or a link to it, inside") as caught:
        read_archive(root)
    assert "\n" not in str(caught.value) and str(root / "dataset.json") in str(caught.value)
