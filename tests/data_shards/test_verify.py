import shutil
from pathlib import Path

import pytest

from data_shards.errors import InputError
from data_shards.verify import verify
from tests.data_shards.helpers import build_places

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
