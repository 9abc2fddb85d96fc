"""Both formats: the same samples in, the same voxels out, whatever the road."""

import copy
import io
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import webdataset
import zarr

from data_shards.errors import InputError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.reader import ShardReader, open_reader
from data_shards.formats.sample import ShardSample
from tests.data_shards.helpers import build_places, decode, stored_code

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9)]
FORMATS = ["zarr", "webdataset"]


@pytest.fixture(scope="module", params=FORMATS)
def index(request, tmp_path_factory):
    return build_places(tmp_path_factory.mktemp(request.param), SHAPES, request.param)


def expected(i: int) -> np.ndarray:
    return stored_code(SHAPES[i], i)


def samples() -> list[ShardSample]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 40, 33, 20)).astype(np.float16)
    label = rng.integers(0, 3, (40, 33, 20)).astype(np.uint8)
    return [ShardSample("a", image, label, {"case": "a"}), ShardSample("b", image[:, ::2], None, {"case": "b"})]


def test_every_voxel_of_every_volume_is_where_it_was(index):
    reader = open_reader(index)
    for i in range(3):
        image, label = reader.read(i), reader.read(i, "label")
        assert image.dtype == np.float32 and label.dtype == np.uint8
        assert np.array_equal(decode(index, i, image), expected(i)[None])
        assert label.shape == image.shape[1:] and label.max() == 2


def test_both_formats_read_back_equal(tmp_path):
    both = [build_places(tmp_path / name, SHAPES, name) for name in FORMATS]
    for i in range(3):
        for what in ("image", "label"):
            first, second = (open_reader(index).read(i, what) for index in both)
            assert np.array_equal(first, second)
    for left, right in zip(both[0].volumes, both[1].volumes, strict=True):
        assert replace(left, shard="", members={}) == replace(right, shard="", members={})


def test_a_crop_holds_the_voxels_of_its_place_and_air_outside(index):
    reader, rng = open_reader(index), np.random.default_rng(0)
    for _ in range(40):
        i = int(rng.integers(3))
        start, size = rng.integers(-12, 12, 3).tolist(), rng.integers(1, 14, 3).tolist()
        image, label = reader.crop(i, start, size), reader.crop(i, start, size, "label")
        assert image.shape == (1, *size) and label.shape == tuple(size)
        whole, whole_label = expected(i), reader.read(i, "label")
        for place in np.ndindex(*size):
            source = tuple(np.add(start, place))
            inside = all(0 <= p < n for p, n in zip(source, whole.shape, strict=True))
            assert decode(index, i, image[(0, *place)]) == (whole[source] if inside else whole.min())
            assert label[place] == (whole_label[source] if inside else 0)


def _read_in_another_process(reader: ShardReader) -> bytes:
    return reader.read(1).tobytes()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_used_reader_works_in_another_process(index, start_method):
    reader = open_reader(index)
    here = reader.read(1).tobytes()  # handles are open, zarr's threads run
    with ProcessPoolExecutor(1, mp_context=get_context(start_method)) as pool:
        assert pool.submit(_read_in_another_process, reader).result(timeout=60) == here
    assert pickle.loads(pickle.dumps(reader)).read(1).tobytes() == here
    assert copy.copy(reader).read(1).tobytes() == here


def test_the_label_of_an_unlabelled_volume_is_an_error(index):
    unlabelled = replace(index, volumes=(replace(index.volumes[0], has_label=False),))
    with pytest.raises(InputError, match="case_0 has no label"):
        open_reader(unlabelled).read(0, "label")


def test_a_missing_shard_is_named(index, tmp_path):
    with pytest.raises(InputError, match="shard-00000"):
        open_reader(replace(index, root=tmp_path)).read(0)


def test_a_tar_cut_short_is_named_not_misread(tmp_path):
    index = build_places(tmp_path, SHAPES, "webdataset")
    path = index.root / index.volumes[1].shard
    path.write_bytes(path.read_bytes()[: index.volumes[1].members["image"][0] + 700])
    with pytest.raises(InputError, match="image of case_1 is damaged"):
        open_reader(index).read(1)


def test_zarr_shards_are_sharded_checksummed_arrays_that_zarr_opens(tmp_path):
    zarr_shards.write_shard(tmp_path / "s.zarr", samples())
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    image = group["a/image"]
    assert image.shards == (2, 40, 34, 20) and image.chunks == (1, 20, 17, 20)
    assert np.array_equal(image[:], samples()[0].image_CDHW) and np.array_equal(
        group["a/label"][:], samples()[0].label_DHW
    )
    assert "label" not in group["b"] and dict(group["b"].attrs) == {"case": "b"}
    sharding = image.metadata.to_dict()["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]


def test_a_flipped_byte_in_a_zarr_chunk_is_an_error_not_another_number(tmp_path):
    zarr_shards.write_shard(tmp_path / "s.zarr", samples())
    (chunk,) = (p for p in (tmp_path / "s.zarr/a/image/c").rglob("*") if p.is_file())
    whole = chunk.read_bytes()
    for place in range(50, len(whole), len(whole) // 7):
        chunk.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError)):
            zarr.open_group(tmp_path / "s.zarr", mode="r")["a/image"][:]


def test_a_tar_is_what_webdataset_reads_and_the_ranges_say(tmp_path):
    path = tmp_path / "s.tar"
    members = webdataset_shards.write_shard(path, samples())
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == ["a", "b"]
    assert np.array_equal(read[0]["image.npy"], samples()[0].image_CDHW)
    assert np.array_equal(read[0]["label.npy"], samples()[0].label_DHW)
    assert "label.npy" not in read[1] and read[1]["json"] == {"case": "b"}
    raw = path.read_bytes()
    for sample, ranges in zip(samples(), members, strict=True):
        assert ranges.keys() == sample.arrays().keys()
        for what, (offset, size) in ranges.items():
            array = np.load(io.BytesIO(raw[offset : offset + size]), allow_pickle=False)
            assert np.array_equal(array, sample.arrays()[what])


def test_equal_samples_make_equal_tar_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        webdataset_shards.write_shard(tmp_path / name, samples())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(info.mtime, info.uid, info.mode) for info in tar} == {(0, 0, 0o444)}


@pytest.mark.parametrize(
    ("write", "name"), [(zarr_shards.write_shard, "s.zarr"), (webdataset_shards.write_shard, "s.tar")]
)
def test_a_writer_that_fails_leaves_the_old_shard_and_nothing_else(tmp_path, write, name):
    def failing():
        yield samples()[0]
        raise RuntimeError("power cut")

    write(tmp_path / name, samples()[1:])
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="power cut"):
        write(tmp_path / name, failing())
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    (tmp_path / f".tmp-{name}").mkdir()  # left by a killed writer
    write(tmp_path / name, samples())
    assert [p.name for p in tmp_path.iterdir()] == [name]
