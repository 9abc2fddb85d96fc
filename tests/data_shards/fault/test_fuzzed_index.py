"""Thousands of damaged indexes: each is refused in one line or gives the right voxels, and none takes the process down.

Damage comes in three depths: bytes of the files, which the hashes must see; values of index.json and cells of the rows
with all hashes made anew, which only validation can see. Wrong voxels count as silent if `verify --deep` is silent too.
MAETRAIN_FUZZ_EXAMPLES sets how many mutations each test tries. They run in a process of their own with little memory.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_shards.errors import InputError, ShardError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.formats.volumes import SCHEMA, VolumeTable
from data_shards.verify import verify
from tests.data_shards.fault.outcome import FORMATS
from tests.data_shards.helpers import build_places

NUM_EXAMPLES = int(os.environ.get("MAETRAIN_FUZZ_EXAMPLES", 300))
SHAPES = [(20, 9, 10), (7, 12, 17), (9, 9, 9), (10, 20, 6)]
START, SIZE = (2, 1, 3), (4, 6, 3)  # inside of every volume, across chunks
MEMORY_BYTES, LIMIT_S = 2**30, 60 + NUM_EXAMPLES // 10
# only the index knows these: whatever stands there is right
FREE = {"scale", "offset", "air", "minimum_C", "case", "subject", "session", "modality", "source", "preprocess",
        "spacing_mm", "mean", "std", "foreground", "voxel_sha256", "image_sha256", "label_sha256", "label_classes",
        "has_label"}  # fmt: skip


@pytest.fixture(scope="module", params=FORMATS)
def index(request, tmp_path_factory) -> ShardIndex:
    folder = tmp_path_factory.mktemp(request.param)
    return build_places(folder, SHAPES, request.param, encoding={"max_chunk": 8})


def crops(index: ShardIndex) -> list[np.ndarray]:
    """The same piece of each image and label."""
    reader = open_reader(index)
    return [reader.crop(i, START, SIZE, what) for i in range(len(index.volumes)) for what in ("image", "label")]


def fault_of(folder: Path, expected: list[np.ndarray], is_free: bool) -> str:
    """What is wrong with how the index in `folder` is taken; "" = nothing."""
    try:
        index = ShardIndex.load(folder)
        found = crops(index)
    except InputError as error:
        return "" if str(error) and "\n" not in str(error) else f"not one line: {error!r}"
    except Exception:
        return traceback.format_exc(limit=-3)
    if is_free or all(map(np.array_equal, found, expected)) or verify(folder, deep=True):
        return ""
    return "wrong voxels, and verify finds nothing"


def sweep(index: ShardIndex, tmp_path: Path, mutate: Callable[[np.random.Generator, Path], tuple[str, bool]]) -> None:
    """`mutate(rng, folder)` damages the index in `folder`; it gives (what it did, True = any voxels will do)."""
    out = tmp_path / "shards"
    shutil.copytree(index.root, out)
    names = ("index.json", f"volumes-{index.volumes.sha256[:12]}.parquet")
    whole, expected = {name: (out / name).read_bytes() for name in names}, crops(index)
    assert all(np.ptp(crop) for crop in expected[::2])

    def try_all() -> None:
        warnings.simplefilter("ignore")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
        signal.alarm(LIMIT_S)
        faults: dict[str, str] = {}
        for k in range(NUM_EXAMPLES):
            for path in out.glob("volumes-*.parquet"):
                path.unlink()
            for name, content in whole.items():
                (out / name).write_bytes(content)
            what, is_free = mutate(np.random.default_rng([k, 17]), out)
            (tmp_path / "last").write_text(what)
            fault = fault_of(out, expected, is_free)
            if fault:
                faults.setdefault(fault, what)  # one example of each kind
        (tmp_path / "faults").write_text(json.dumps(faults))

    process = get_context("fork").Process(target=try_all)
    process.start()
    process.join()
    last = (tmp_path / "last").read_text() if (tmp_path / "last").exists() else "nothing yet"
    assert process.exitcode == 0, f"died with {process.exitcode} after: {last}"
    faults = json.loads((tmp_path / "faults").read_text())
    assert not faults, "\n".join(f"{what}\n  -> {fault}" for fault, what in faults.items())


def test_damaged_bytes_of_either_file_are_refused(index, tmp_path):
    def mutate(rng: np.random.Generator, out: Path) -> tuple[str, bool]:
        path = out / "index.json" if rng.random() < 0.5 else next(out.glob("volumes-*.parquet"))
        content, kind = bytearray(path.read_bytes()), int(rng.integers(4))
        at = int(rng.integers(len(content)))
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at : at + int(rng.integers(1, 30))] = rng.bytes(int(rng.integers(0, 30)))
        else:
            content[at:at] = content[at : at + 40]
        path.write_bytes(content)
        return f"{path.name}: kind {kind} at {at}", False

    sweep(index, tmp_path, mutate)


HOSTILE = [None, True, 0, 1, -1, 2**63, -(2**70), 1e308, "", "x", "../../etc/passwd", "\0", "zarr", "webdataset", [],
           {}, [[]], [None], {"a": 1}, "0" * 64, "float16", "int16", "lz4hc", "zstd"]  # fmt: skip


def test_swapped_values_of_the_header_with_its_hash_made_anew(index, tmp_path):
    def places(node, path=()):
        yield path
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            yield from places(child, (*path, key))

    def mutate(rng: np.random.Generator, out: Path) -> tuple[str, bool]:
        content = json.loads((out / "index.json").read_text())
        content.pop("sha256")
        *above, key = list(places(content))[int(rng.integers(1, len(list(places(content)))))]
        node = content
        for step in above:
            node = node[step]
        value = HOSTILE[int(rng.integers(len(HOSTILE)))]
        if isinstance(node[key], int) and rng.random() < 0.5:
            value = node[key] + int(rng.integers(-20, 20))
        if rng.random() < 0.1:
            del node[key]
        else:
            node[key] = value
        version = content.pop("schema_version", None)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        sha256 = hashlib.sha256(canonical.encode()).hexdigest()
        (out / "index.json").write_text(json.dumps({"schema_version": version, "sha256": sha256, **content}))
        return f"{[*above, key]} = {value!r}", False

    sweep(index, tmp_path, mutate)


def hostile_cell(rng: np.random.Generator, name: str, rows: list[dict]) -> object:
    """A value for a cell of the column `name`: a damaged number, another row's, or nothing at all."""
    old, kind = rows[0][name], rng.random()
    if kind < 0.1:
        return None
    if kind < 0.2:
        return rows[int(rng.integers(len(rows)))][name]
    if isinstance(old, list) and old and isinstance(old[0], int | float):
        new = list(old)
        if SCHEMA.field(name).type.equals(pa.list_(pa.float64())) and rng.random() < 0.3:
            return new[1:] if rng.random() < 0.5 else [*new, float("nan")]
        if name == "shape_CDHW" and rng.random() < 0.3:
            return rng.permutation(new).tolist()
        numbers = [0, -1, 1, 7, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), float("nan"), float("inf"), None]
        k = int(rng.integers(len(new)))
        new[k] = numbers[int(rng.integers(len(numbers)))]
        if isinstance(old[0], int) and rng.random() < 0.5:
            new[k] = old[k] + int(rng.integers(-9, 10))
        return new
    if isinstance(old, bool):
        return not old
    if isinstance(old, float):
        return float(rng.choice([0.0, -1.0, np.nan, np.inf, 1e308, 1e-308]))
    if isinstance(old, bytes):
        return rng.bytes(32)
    texts = ["", "x", "\0", "../..", "/etc/passwd", "x" * 5000, "shard-00000.tar", "\u202e", "{", "float16",
             "int16", "uint8", "float32", "float64", "<f2", ">f2", "O", "V0", "U3", "f2,f2", "foo"]  # fmt: skip
    return texts[int(rng.integers(len(texts)))]


READ = ["shape_CDHW", "image_member", "label_member", "dtype", "shard", "case", "has_label", "air"]


def test_hostile_cells_of_the_rows_with_all_hashes_made_anew(index, tmp_path):
    rows = index.volumes.table.to_pylist()

    def mutate(rng: np.random.Generator, out: Path) -> tuple[str, bool]:
        while True:
            # mostly what a crop depends on
            name = str(rng.choice(READ if rng.random() < 0.7 else SCHEMA.names))
            place, changed = int(rng.integers(len(rows))), [dict(row) for row in rows]
            changed[place][name] = value = hostile_cell(rng, name, [rows[place], *rows])
            try:
                replace(index, volumes=VolumeTable(pa.Table.from_pylist(changed, schema=SCHEMA))).save(out)
            except (pa.ArrowException, OverflowError, ValueError, TypeError):
                continue  # no such cell can stand in the file
            return f"row {place}: {name} = {value!r:.200}", name in FREE

    sweep(index, tmp_path, mutate)


def test_a_volume_of_another_type_than_the_shards_are_encoded_in_is_refused(index):
    """Each in a process of its own: "O" makes the decoder write numbers where Python keeps pointers."""
    codes = {}
    for dtype in ("O", "float32", "float64", "int16", "uint8", ">f2", "V2", "foo", ""):
        volumes = VolumeTable.of([replace(index.volumes[0], dtype=dtype), *index.volumes[1:]])
        process = get_context("fork").Process(target=assert_refused, args=(replace(index, volumes=volumes),))
        process.start()
        process.join()
        codes[dtype] = process.exitcode
    assert set(codes.values()) == {0}, codes


def assert_refused(index: ShardIndex) -> None:
    with pytest.raises(ShardError):
        open_reader(index).stored_crop(0, START, SIZE)


@pytest.mark.parametrize("shape", [(1, 10, 9, 24), (1, 10, 16, 20), (1, 12, 9, 20)])
def test_a_shape_whose_chunks_are_larger_than_the_stored_ones_is_refused_not_filled_with_stale_memory(index, shape):
    assert index.volumes[0].shape_CDHW == (1, 10, 9, 20)
    volumes = (replace(index.volumes[0], shape_CDHW=shape), *index.volumes[1:])
    with pytest.raises(ShardError):
        open_reader(replace(index, volumes=VolumeTable.of(volumes))).read(0)
