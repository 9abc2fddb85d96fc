import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.errors import InputError
from data_shards.formats.index import Quarantined, ShardIndex, ShardInfo, VolumeRecord
from data_shards.preprocess import PreprocessConfig

VOLUME = VolumeRecord(
    case="a", subject="anna", shard="shard-00000.tar", shape_CDHW=(1, 2, 3, 4), spacing_mm=(1.0, 0.1, 2.5),
    voxel_sha256="00", source="imagesTr/a.nii.gz", has_label=True, label_classes=(0, 2), preprocess={"x": [1]},
    stored_sha256={"image": "11"}, members={"image": (512, 48)}, mean=0.1, std=1 / 3, minimum_C=(-2.0,),
)  # fmt: skip
INDEX = ShardIndex(
    format="webdataset",
    name="Set",
    channel_names=("MRI",),
    class_names=("background", "x", "y"),
    preprocess=PreprocessConfig(spacing_mm=(1, 1, 2)),
    volumes=(VOLUME,),
    shards=(ShardInfo("shard-00000.tar", "22", 10_240),),
    quarantined=(Quarantined("b", "imagesTr/b.nii.gz", "imagesTr/b.nii.gz: broken"),),
    duplicates=(("c", "a"),),
)


def test_an_index_comes_back_equal_and_knows_its_folder(tmp_path):
    INDEX.save(tmp_path)
    loaded = ShardIndex.load(tmp_path)
    assert loaded == INDEX and loaded.root == tmp_path and loaded.sha256 == INDEX.sha256
    assert loaded.volumes[0].shape_DHW == (2, 3, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]


def test_the_digest_sees_the_content_and_not_the_folder():
    assert replace(INDEX, root=Path("/elsewhere")).sha256 == INDEX.sha256
    for changed in (
        replace(INDEX, volumes=(replace(VOLUME, mean=0.2),)),
        replace(INDEX, quarantined=()),
        replace(INDEX, preprocess=PreprocessConfig()),
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
        pytest.param(lambda c: c["volumes"][0].pop("shard"), "garbled at volumes.0.shard", id="field missing"),
        pytest.param(lambda c: c.update(format="hdf5"), "garbled at format", id="unknown format"),
        pytest.param(lambda c: c.update(extra=1), "garbled at extra", id="unknown field"),
        pytest.param(lambda c: c["volumes"][0].update(mean=0.5), "edited or damaged", id="edited"),
    ],
)
def test_a_garbled_index_is_named(tmp_path, change, message):
    edit(tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        ShardIndex.load(tmp_path)
    assert "index.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff"])
def test_what_is_not_json_is_no_index(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is not an index"):
        ShardIndex.load(tmp_path)


def test_a_missing_index_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="build the shards first"):
        ShardIndex.load(tmp_path)
