import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.verify import verify
from tests.data_shards.helpers import KEEP_ALL, build_places, write_archive

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9)]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x01
    path.write_bytes(content)


def test_a_whole_build_has_no_damage(tmp_path):
    for format in ("zarr", "webdataset"):
        index = build_places(tmp_path / format, SHAPES, format)
        assert verify(index.root) == [] == verify(index.root, deep=True)


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_flipped_bit_in_a_tar_names_shard_and_when_deep_the_case(tmp_path, what):
    index = build_places(tmp_path, SHAPES, "webdataset")
    offset, size, _ = index.volumes[1].members[what]
    flip(index.root / "shard-00000.tar", offset + size - 2)
    (damage,) = verify(index.root)
    assert (damage.shard, damage.case) == ("shard-00000.tar", None) and "sha256" in damage.reason
    assert [d.case for d in verify(index.root, deep=True)] == [None, "case_1"]


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_flipped_byte_in_a_zarr_chunk_names_shard_and_when_deep_the_case(tmp_path, what):
    index = build_places(tmp_path, SHAPES, "zarr")
    (chunk,) = (p for p in (index.root / f"shard-00001.zarr/case_2/{what}/c").rglob("*") if p.is_file())
    flip(chunk, 20)
    assert [(d.shard, d.case) for d in verify(index.root)] == [("shard-00001.zarr", None)]
    assert [d.case for d in verify(index.root, deep=True)] == [None, "case_2"]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_missing_and_a_cut_shard_are_named(tmp_path, format):
    index = build_places(tmp_path, SHAPES, format)
    first, second = (index.root / shard.name for shard in index.shards)
    if format == "zarr":
        shutil.rmtree(first)
        next(p for p in second.rglob("0") if p.is_file()).unlink()
    else:
        first.unlink()
        second.write_bytes(second.read_bytes()[:-4096])
    damages = verify(index.root)
    assert [d.shard for d in damages] == [first.name, second.name]
    assert damages[0].reason == "is missing" and "bytes, the index says" in damages[1].reason


def test_a_folder_without_index_is_an_error_not_a_clean_bill(tmp_path):
    with pytest.raises(InputError, match="index.json"):
        verify(tmp_path)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_whole_build_of_int16_shards_has_no_damage(tmp_path, format):
    index = build_places(tmp_path, SHAPES, format, encoding={"dtype": "int16"})
    assert verify(index.root, deep=True) == []


def named(folder: Path) -> list[tuple[str, str | None]]:
    return [(damage.shard, damage.case) for damage in verify(folder, deep=True)]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_every_case_of_a_missing_shard_is_named(tmp_path, format):
    index = build_places(tmp_path, SHAPES, format)
    name = index.shards[0].name
    (index.root / name).rename(tmp_path / "elsewhere")
    assert named(index.root) == [(name, None), (name, "case_0"), (name, "case_1")]


def test_the_cases_that_a_cut_tar_lost_are_named_and_those_before_are_not(tmp_path):
    index = build_places(tmp_path, SHAPES, "webdataset")
    path = index.root / "shard-00000.tar"
    whole = path.read_bytes()
    (first, second) = (volume.members for volume in index.volumes[:2])
    for length, lost in {
        second["label"].offset + 5: ["case_1"],
        first["label"].offset + 5: ["case_0", "case_1"],
        0: ["case_0", "case_1"],
    }.items():
        path.write_bytes(whole[:length])
        assert named(index.root) == [(path.name, None), *((path.name, case) for case in lost)], length


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_every_case_is_named_when_the_index_of_another_build_lies_in_the_folder(tmp_path, format):
    index = build_places(tmp_path / "one", SHAPES, format)
    other = build_places(tmp_path / "two", SHAPES, format, preprocess={"clip_percentiles": (20, 80)})
    for path in [*other.root.glob("*.json"), *other.root.glob("*.parquet")]:
        shutil.copy(path, index.root)
    cases = {damage.case for damage in verify(index.root, deep=True)}
    assert cases == {None, "case_0", "case_1", "case_2"}


def test_a_missing_or_changed_catalogue_is_named(tmp_path):
    index = build_places(tmp_path, SHAPES)
    path = index.root / "catalogue.parquet"
    flip(path, 100)
    (damage,) = verify(index.root)
    assert (damage.shard, damage.case) == ("catalogue.parquet", None) and "content has changed" in damage.reason
    path.unlink()
    (damage,) = verify(index.root)
    assert (damage.shard, damage.case, damage.reason) == ("catalogue.parquet", None, "is missing")


def test_a_flipped_bit_anywhere_in_the_index_is_an_error_or_changes_nothing(tmp_path):
    index = build_places(tmp_path, SHAPES)
    rows = index.root / f"volumes-{index.volumes.sha256[:12]}.parquet"
    num_unseen = 0
    for path in (index.root / "index.json", rows):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 150)):
            flip(path, place)
            try:
                assert ShardIndex.load(index.root) == index and path != rows
                num_unseen += 1
            except InputError:
                pass
            path.write_bytes(whole)
    assert num_unseen < 30  # a blank that became another one


def test_a_flipped_bit_in_a_stored_result_is_named_and_the_next_build_mends_it(tmp_path):
    index = build_places(tmp_path, SHAPES, "webdataset")
    path = index.root / ".build/shard-00001.tar.json"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 61):  # the last byte ends the line
        flip(path, place)
        (damage,) = verify(index.root, deep=True)
        assert (damage.shard, damage.case) == (".build/shard-00001.tar.json", None) and "next build" in damage.reason
        path.write_bytes(whole)
    flip(path, 200)
    config = BuildConfig(format="webdataset", preprocess=KEEP_ALL, volumes_per_shard=2)
    assert build(tmp_path / "archive", index.root, config).sha256 == index.sha256
    assert path.read_bytes() != b"" and verify(index.root) == []
    shutil.rmtree(index.root / ".build")  # shards that were copied without it are whole
    assert verify(index.root, deep=True) == []


@pytest.mark.parametrize("file", ["zarr.json", "image/zarr.json", "label/zarr.json"])
def test_a_changed_number_in_a_zarr_json_names_the_case_although_our_reader_does_not_look(tmp_path, file):
    index = build_places(tmp_path, SHAPES, "zarr")
    shard = index.root / "shard-00000.zarr"
    path = shard / "case_1" / file
    whole = path.read_text()
    for place in [k for k, letter in enumerate(whole) if letter.isdigit()][::3]:
        flip(path, place)
        assert named(index.root) == [(shard.name, None), (shard.name, "case_1")], place
        path.write_text(whole)
    for broken in ("", "{", "[]"):
        path.write_text(broken)
        assert named(index.root) == [(shard.name, None), (shard.name, "case_1")], broken
    path.write_text(whole + " ")  # changes nothing: no case is damaged, though the shard is not as it was
    assert named(index.root) == [(shard.name, None)]
    path.write_text(whole)
    flip(shard / "zarr.json", 20)
    assert named(index.root) == [(shard.name, None)]


def test_any_flipped_bit_of_chunks_and_facts_in_a_tar_names_its_case_and_no_bit_names_another(tmp_path):
    index = build_places(tmp_path, [(8, 9, 10), (7, 12, 6), (9, 6, 9)], "webdataset", volumes_per_shard=3)
    path = index.root / "shard-00000.tar"
    whole = path.read_bytes()
    starts = [whole.index(f"case_{i}.image".encode()) for i in range(3)]
    texts = rb'\{\n "zarr_format".*?\n\}|\{"add_offset".*?\}|case_\d\.(image|label|json)'
    spans = [match.span() for match in re.finditer(texts, whole, re.DOTALL)]
    assert len(spans) == 3 * (2 + 1 + 3)
    ranges = [member for volume in index.volumes for member in volume.members.values()]
    spans += [(offset, offset + size) for offset, size, _ in ranges]
    for place in range(0, len(whole), 101):
        flip(path, place)
        damages = named(index.root)
        owner = f"case_{sum(start <= place for start in starts) - 1}"
        assert damages[0] == (path.name, None) and {case for _, case in damages[1:]} <= {owner}, place
        assert len(damages) > 1 or not any(first <= place < end for first, end in spans), place
        path.write_bytes(whole)


def test_the_facts_beside_the_voxels_in_a_tar_are_those_of_the_index(tmp_path):
    index = build_places(tmp_path, SHAPES, "webdataset")
    path = index.root / "shard-00000.tar"
    whole = path.read_bytes()
    facts = json.dumps({"add_offset": 0.0, "case": "case_0"})[:-1].encode()
    assert facts in whole
    path.write_bytes(whole.replace(facts, facts.replace(b"0.0", b"0.5")))
    assert named(index.root) == [(path.name, None), (path.name, "case_0")]


def test_labels_beyond_the_classes_are_named(tmp_path):
    archive = write_archive(tmp_path / "archive", SHAPES)
    index = build(archive, tmp_path / "out", BuildConfig(preprocess=KEEP_ALL))
    replace(index, class_names=("background", "part")).save(index.root)
    assert [d.case for d in verify(index.root, deep=True)] == ["case_0", "case_1", "case_2"]
