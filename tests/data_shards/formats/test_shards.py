"""Both formats: the same samples in, the same voxels out, whatever the road."""

import copy
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import blosc2
import google_crc32c
import numpy as np
import pytest
import webdataset
import zarr

from data_shards.errors import InputError, ShardError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.encoding import Encoding, Member, StoredArray, table_crc32c
from data_shards.formats.files import published
from data_shards.formats.reader import ShardReader, open_reader
from data_shards.formats.sample import ShardSample
from data_shards.formats.storage import Range, read_checked
from tests.data_shards.helpers import build_places, decode, stored_code

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9)]
FORMATS = ["zarr", "webdataset"]


@pytest.fixture(scope="module", params=FORMATS)
def index(request, tmp_path_factory):
    return build_places(tmp_path_factory.mktemp(request.param), SHAPES, request.param)


def expected(i: int) -> np.ndarray:
    return stored_code(SHAPES[i], i)


def samples(dtype: str = "float16") -> list[ShardSample]:
    rng = np.random.default_rng(0)
    image = (100 * rng.normal(size=(2, 40, 33, 20))).astype(dtype)
    label = rng.integers(0, 3, (40, 33, 20)).astype(np.uint8)
    air = float(image.min())
    unlabelled = ShardSample("b", image[:, ::2], None, air, {"case": "b"})
    return [ShardSample("a", image, label, air, {"case": "a"}), unlabelled]


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
    for length in (index.volumes[1].members["image"].offset + 100, 0):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ShardError, match=r"shard-00000.tar: bytes \d+ to \d+ are damaged or missing"):
            open_reader(index).read(1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_short_while_it_is_open_is_an_error_not_a_crash(tmp_path, format):
    index = build_places(tmp_path, SHAPES, format)
    reader = open_reader(index)
    reader.read(0)
    for path in index.root.rglob("*"):
        if path.suffix == ".tar" or (path.is_file() and "/c/0" in path.as_posix()):
            os.truncate(path, 10)
    with pytest.raises(ShardError, match="damaged or missing"):
        reader.read(0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_of_another_build_is_noticed_although_its_chunks_are_whole(tmp_path, format):
    one = build_places(tmp_path / "one", SHAPES, format)
    two = build_places(tmp_path / "two", SHAPES, format, preprocess={"clip_percentiles": (20, 80)})
    with pytest.raises(ShardError, match="not the shard this index was written for|damaged or missing"):
        open_reader(replace(one, root=two.root)).read(0)


@pytest.mark.parametrize("dtype", ["float16", "int16"])
def test_zarr_shards_are_sharded_checksummed_arrays_that_zarr_opens(tmp_path, dtype):
    zarr_shards.write_shard(tmp_path / "s.zarr", samples(dtype), Encoding())
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    image = group["a/image"]
    assert image.shards == (2, 40, 34, 20) and image.chunks == (1, 20, 17, 20)
    for sample in samples(dtype):
        for what, (array, _) in sample.arrays().items():
            assert np.array_equal(group[f"{sample.case}/{what}"][...], array)
    assert "label" not in group["b"] and dict(group["b"].attrs) == {"case": "b"}
    sharding = image.metadata.to_dict()["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "blosc", "crc32c"]


def test_a_flipped_byte_in_a_zarr_chunk_is_an_error_to_zarr_as_well(tmp_path):
    zarr_shards.write_shard(tmp_path / "s.zarr", samples(), Encoding())
    (chunk,) = (p for p in (tmp_path / "s.zarr/a/image/c").rglob("*") if p.is_file())
    whole = chunk.read_bytes()
    for place in range(50, len(whole), len(whole) // 7):
        chunk.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError)):
            zarr.open_group(tmp_path / "s.zarr", mode="r")["a/image"][:]


def test_chunks_of_nothing_but_air_take_no_bytes(tmp_path):
    image = np.full((1, 64, 64, 64), -1.5, np.float16)
    image[0, 40, 50, 60] = 2
    encoded = Encoding(max_chunk=32).encode(image, -1.5)
    table = np.frombuffer(encoded[-4 - 8 * 16 : -4], "<u8").reshape(8, 2)
    assert (table[:7] == 2**64 - 1).all() and table[7, 0] == 0
    assert table_crc32c(encoded) == google_crc32c.value(encoded[-4 - 8 * 16 : -4])


def test_a_tar_is_what_webdataset_reads_and_its_ranges_are_the_zarr_shards_bytes(tmp_path):
    path = tmp_path / "s.tar"
    members = webdataset_shards.write_shard(path, samples(), Encoding())
    in_zarr = zarr_shards.write_shard(tmp_path / "s.zarr", samples(), Encoding())
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode(webdataset_shards.decode_zarr))
    assert [sample["__key__"] for sample in read] == ["a", "b"]
    assert np.array_equal(read[0]["image.zarr.zip"], samples()[0].image_CDHW)
    assert np.array_equal(read[0]["label.zarr.zip"], samples()[0].label_DHW)
    assert "label.zarr.zip" not in read[1] and read[1]["json"] == {"case": "b"}
    raw = path.read_bytes()
    for sample, ranges, others in zip(samples(), members, in_zarr, strict=True):
        assert ranges.keys() == sample.arrays().keys()
        for what, (offset, size, crc) in ranges.items():
            file = tmp_path / zarr_shards.member_file("s.zarr", sample.case, what)
            assert raw[offset : offset + size] == file.read_bytes() and others[what] == (0, size, crc)


def test_a_member_of_a_tar_is_a_zip_that_zarr_opens_by_itself(tmp_path):
    webdataset_shards.write_shard(tmp_path / "s.tar", samples(), Encoding())
    with tarfile.open(tmp_path / "s.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    store = zarr.storage.ZipStore(tmp_path / "a.image.zarr.zip", mode="r")
    assert np.array_equal(zarr.open_array(store, mode="r")[...], samples()[0].image_CDHW)


def test_equal_samples_make_equal_tar_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        webdataset_shards.write_shard(tmp_path / name, samples(), Encoding())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(info.mtime, info.uid, info.mode) for info in tar} == {(0, 0, 0o444)}


@pytest.mark.parametrize("compressor", ["lz4hc", "zstd"])
@pytest.mark.parametrize("max_chunk", [8, 31, 128])
def test_any_box_of_any_grid_is_the_arrays_own(compressor, max_chunk):
    rng = np.random.default_rng(0)
    encoding = Encoding(max_chunk=max_chunk, compressor=compressor)
    for shape in [(3, 33, 9, 70), (1, 1, 1, 1), (40, 8, 17)]:
        array = rng.integers(-3, 3, shape).astype(np.int16)
        encoded = encoding.encode(array, 0)
        storage = Memory(b"before" + encoded)
        member = Member(6, len(encoded), table_crc32c(encoded))
        stored = StoredArray(storage, "file", member, encoding.grid(shape), array.dtype, 0)
        for _ in range(10):
            start = [int(rng.integers(0, n)) for n in shape]
            stop = [int(rng.integers(a, n + 1)) for a, n in zip(start, shape, strict=True)]
            box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            into = np.empty_like(array[box])
            stored.read_boxes(storage, [(start, stop)], [into])
            assert np.array_equal(into, array[box])


def test_boxes_read_together_are_those_read_alone_and_decode_each_chunk_once(monkeypatch):
    array = np.random.default_rng(0).integers(0, 9, (40, 30, 20)).astype(np.uint8)
    encoding = Encoding(max_chunk=10)
    encoded = encoding.encode(array, 0)
    storage, member = Memory(encoded), Member(0, len(encoded), table_crc32c(encoded))
    stored = StoredArray(storage, "file", member, encoding.grid(array.shape), array.dtype, 0)
    boxes = [((0, 0, 0), (25, 12, 20)), ((5, 3, 0), (40, 30, 11)), ((3, 3, 3), (3, 9, 9))]
    into = [np.empty_like(array[tuple(map(slice, *box))]) for box in boxes]
    num_decoded = []
    decode = blosc2.decompress
    monkeypatch.setattr(blosc2, "decompress", lambda *args: num_decoded.append(1) or decode(*args))
    stored.read_boxes(storage, boxes, into)
    for box, voxels in zip(boxes, into, strict=True):
        assert np.array_equal(voxels, array[tuple(map(slice, *box))])
    assert len(num_decoded) == 24  # the boxes touch 12 and 24 chunks, of the 24 there are


def test_every_flipped_bit_of_an_array_is_an_error(tmp_path):
    array = np.random.default_rng(0).normal(size=(1, 9, 12, 11)).astype(np.float16)
    encoding = Encoding(max_chunk=8)
    encoded = encoding.encode(array, 0)
    member = Member(0, len(encoded), table_crc32c(encoded))
    for place in range(0, len(encoded), 3):
        storage = Memory(encoded[:place] + bytes([encoded[place] ^ 16]) + encoded[place + 1 :])
        with pytest.raises(ShardError):
            stored = StoredArray(storage, "file", member, encoding.grid(array.shape), array.dtype, 0)
            stored.read_boxes(storage, [((0, 0, 0, 0), array.shape)], [np.empty_like(array)])


class Memory:
    """One file's bytes as a storage."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, file, ranges):
        return [memoryview(self.content[offset : offset + size]) for offset, size in ranges]

    read_again = read


def test_a_checksum_that_was_wrong_once_is_read_again():
    encoded = Encoding().encode(np.ones((4, 4, 4), np.uint8), 0)

    class Flaky(Memory):
        def read(self, file, ranges):
            return [memoryview(bytes(part)[::-1]) for part in super().read(file, ranges)]

    (table,) = read_checked(Flaky(encoded), "file", [Range(len(encoded) - 20, 20)])
    assert len(table) == 20


@pytest.mark.parametrize(
    ("write", "name"), [(zarr_shards.write_shard, "s.zarr"), (webdataset_shards.write_shard, "s.tar")]
)
def test_a_writer_that_fails_leaves_the_old_shard_and_nothing_else(tmp_path, write, name):
    def failing():
        yield samples()[0]
        raise RuntimeError("power cut")

    def publish(content):
        with published(tmp_path / name) as temporary:
            write(temporary, content, Encoding())

    publish(samples()[1:])
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="power cut"):
        publish(failing())
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    publish(samples())
    assert [p.name for p in tmp_path.iterdir()] == [name]
