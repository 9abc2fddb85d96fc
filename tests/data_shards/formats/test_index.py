import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.errors import InputError
from data_shards.formats.encoding import Encoding, Member
from data_shards.formats.index import Quarantined, ShardIndex, ShardInfo
from data_shards.formats.volumes import VolumeRecord
from data_shards.preprocess import PreprocessConfig

VOLUME = VolumeRecord(
    case="a", subject="anna", shard="shard-00000.tar", shape_CDHW=(1, 2, 3, 4), spacing_mm=(1.0, 0.1, 2.5),
    voxel_sha256="00" * 32, source="imagesTr/a.nii.gz", has_label=True, label_classes=(0, 2), preprocess={"x": [1]},
    stored_sha256={"image": "11" * 32}, members={"image": Member(512, 48, 7)}, mean=0.1, std=1 / 3, minimum_C=(-2.0,),
    session="s", modality="MR", dtype="int16", scale=0.5, offset=-1.0, air=-2.0, foreground=b"\x00\xff",
)  # fmt: skip
INDEX = ShardIndex(
    format="webdataset",
    name="Set",
    channel_names=("MRI",),
    class_names=("background", "x", "y"),
    preprocess=PreprocessConfig(spacing_mm=(1, 1, 2)),
    volumes=(VOLUME, replace(VOLUME, case="c", has_label=False, members={})),
    shards=(ShardInfo("shard-00000.tar", "22", 10_240),),
    quarantined=(Quarantined("b", "imagesTr/b.nii.gz", "imagesTr/b.nii.gz: broken"),),
    duplicates=(("c", "a"),),
    encoding=Encoding(max_chunk=16),
)


def test_an_index_comes_back_equal_and_knows_its_folder(tmp_path):
    INDEX.save(tmp_path)
    loaded = ShardIndex.load(tmp_path)
    assert loaded == INDEX and loaded.root == tmp_path and loaded.sha256 == INDEX.sha256
    assert loaded.volumes[0] == VOLUME and loaded.volumes[0].shape_DHW == (2, 3, 4)
    rows = f"volumes-{INDEX.volumes.sha256[:12]}.parquet"
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["index.json", rows]


def test_saving_again_takes_the_old_rows_away(tmp_path):
    INDEX.save(tmp_path)
    changed = replace(INDEX, volumes=(VOLUME,))
    changed.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and ShardIndex.load(tmp_path) == changed


def test_the_digest_sees_the_content_and_not_the_folder():
    assert replace(INDEX, root=Path("/elsewhere")).sha256 == INDEX.sha256
    for changed in (
        replace(INDEX, volumes=(replace(VOLUME, mean=0.2), INDEX.volumes[1])),
        replace(INDEX, quarantined=()),
        replace(INDEX, preprocess=PreprocessConfig()),
        replace(INDEX, encoding=Encoding()),
    ):
        assert changed.sha256 != INDEX.sha256


def edit(tmp_path: Path, change) -> None:
    INDEX.save(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    change(content)
    (tmp_path / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda c: c.update(schema_version=99), "schema version 99", id="from the future"),
        pytest.param(lambda c: c.pop("schema_version"), "schema version None", id="no version"),
        pytest.param(lambda c: c["shards"][0].pop("bytes"), "garbled at shards.0.bytes", id="field missing"),
        pytest.param(lambda c: c.update(format="hdf5"), "garbled at format", id="unknown format"),
        pytest.param(lambda c: c.update(extra=1), "garbled at extra", id="unknown field"),
        pytest.param(lambda c: c["shards"][0].update(bytes=1), "edited or damaged", id="edited"),
        pytest.param(lambda c: c.update(volumes_sha256="00" * 32), "is not there, though", id="rows of another index"),
        pytest.param(lambda c: c.update(volumes_sha256="../" * 9), "garbled at volumes_sha256", id="a path out"),
    ],
)
def test_a_garbled_index_is_named(tmp_path, change, message):
    edit(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        ShardIndex.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", "[" * 100_000])
def test_what_is_not_json_is_no_index(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is not an index"):
        ShardIndex.load(tmp_path)


def test_a_missing_index_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="build the shards first"):
        ShardIndex.load(tmp_path)


def test_every_flipped_bit_and_every_cut_of_the_rows_is_noticed(tmp_path):
    INDEX.save(tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    whole = path.read_bytes()
    broken = [whole[:k] + bytes([whole[k] ^ 4]) + whole[k + 1 :] for k in range(0, len(whole), 97)]
    for content in [*broken, whole[:-1], whole[: len(whole) // 2], b"", whole + b"x"]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="does not match the hash"):
            ShardIndex.load(tmp_path)
