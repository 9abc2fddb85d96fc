"""The whole way on real scans, where they are: a few hippocampus volumes into both formats and back."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_shards.build import BuildConfig, build
from data_shards.formats.reader import open_reader
from data_shards.preprocess import PreprocessRecord
from data_shards.verify import verify
from tests.data_shards.helpers import restored_XYZ

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "Task04_Hippocampus"


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_real_scans_are_built_verified_and_their_labels_return_to_the_file_s_grid(tmp_path, format):
    if not ARCHIVE.is_dir():
        pytest.skip("needs ../shared/data/Task04_Hippocampus, which is not beside this checkout")
    header = json.loads((ARCHIVE / "dataset.json").read_text())
    chosen = [entry for entry in header["training"] if re.search("_(003|004|243)", entry["image"])]
    assert len(chosen) == 3  # two of one person, two labels stored as float32
    folder = tmp_path / "archive"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for path in (path for entry in chosen for path in entry.values()):
        (folder / path).symlink_to(ARCHIVE / path)
    (folder / "dataset.json").write_text(json.dumps(header | {"training": chosen}))
    (folder / "subjects.json").symlink_to(ARCHIVE / "subjects.json")

    index = build(folder, tmp_path / "out", BuildConfig(format=format, volumes_per_shard=2))
    assert verify(tmp_path / "out", deep=True) == [] and index.quarantined == ()
    assert len(index.volumes) == 3 and len({v.subject for v in index.volumes}) == 2
    reader = open_reader(index)
    for i, volume in enumerate(index.volumes):
        assert abs(volume.mean) < 0.01 and abs(volume.std - 1) < 0.01
        one_hot_KDHW = np.moveaxis(np.eye(3, dtype=np.float32)[reader.read(i, "label")], -1, 0)
        restored = restored_XYZ(one_hot_KDHW, PreprocessRecord.from_json(volume.preprocess))
        label = nib.load(folder / volume.source.replace("imagesTr", "labelsTr")).get_fdata()
        assert np.array_equal(restored, label)
