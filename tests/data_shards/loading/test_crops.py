"""Crops and mask seeds: damage gives way, anatomy is looked for, neighbours share a volume, int16 is read back."""

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import BuildConfig, build
from data_shards.errors import ShardError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.loading.crops import CropRecipe, CropSet, Request
from data_shards.loading.pretrain import PretrainBatch, pretrain_batches
from data_shards.order.crops import crop_start
from data_shards.order.shuffle import EpochOrder
from data_shards.order.streams import stream, stream_seed
from data_shards.order.world import World
from tests.data_shards.helpers import KEEP_ALL, build_places, decode, place_code, stored_code, write_nifti

SHAPES = [(20, 9, 10), (12, 17, 9), (10, 20, 9), (9, 9, 20), (16, 11, 9)]
CROP = (4, 5, 6)
FORMATS = ["zarr", "webdataset"]
Told = tuple[str, int, bytes]  # case, mask seed, voxels
NUM_SAMPLES = 60  # twelve epochs of one crop a volume, six of two


@pytest.fixture(params=FORMATS)
def index(request, tmp_path) -> ShardIndex:
    """In chunks of 8, so that a damaged one spoils some crops of its volume and not all."""
    return build_places(tmp_path, SHAPES, request.param, encoding={"max_chunk": 8})


def flip_byte_of_case_2(index: ShardIndex) -> None:
    volume = index.volumes[2]
    name = f"{volume.shard}/case_2/image/c/0/0/0/0" if index.format == "zarr" else volume.shard
    content = bytearray((index.root / name).read_bytes())
    content[volume.members["image"].offset + 40] ^= 1  # in the first of its chunks
    (index.root / name).write_bytes(content)


def remove_shard_of_case_2(index: ShardIndex) -> None:
    path = index.root / index.volumes[2].shard
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut_file_of_case_2(index: ShardIndex) -> None:
    volume = index.volumes[2]
    path = index.root / volume.shard / "case_2/image/c/0/0/0/0"
    path = path if index.format == "zarr" else index.root / volume.shard
    path.write_bytes(path.read_bytes()[: volume.members["image"].offset + 100])


DAMAGES = [flip_byte_of_case_2, remove_shard_of_case_2, cut_file_of_case_2]


def read(index: ShardIndex, world_size: int = 1, micro: int = 2, **settings) -> tuple[list[Told], list[PretrainBatch]]:
    """The first NUM_SAMPLES samples of all ranks, in the global order, and the batches they came in."""
    settings = {"cache_bytes": 0, "max_damaged_share": 1.0, "on_damage": lambda line: None, **settings}
    num_steps = -(-NUM_SAMPLES // (micro * world_size))
    of_ranks = []
    for rank in range(world_size):
        batches = pretrain_batches(index, range(5), CROP, micro, World(rank, world_size), seed=4, **settings)
        of_ranks.append(list(itertools.islice(batches, num_steps)))
    in_turn = [batch for step in zip(*of_ranks, strict=True) for batch in step]
    samples = [
        (key, int(seed), voxels.numpy().tobytes())
        for batch in in_turn
        for key, seed, voxels in zip(batch.keys, batch.seeds_B, batch.stored_BCDHW, strict=True)
    ]
    return samples[:NUM_SAMPLES], in_turn


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_volume_gives_way_and_the_others_do_not(index, damage):
    whole, _ = read(index)
    damage(index)
    samples, batches = read(index)
    replaced = [k for k in range(NUM_SAMPLES) if samples[k][0] != whole[k][0]]
    spoilt = [k for k in range(NUM_SAMPLES) if whole[k][0] in ("case_2", *lost_beside(index, damage))]
    assert replaced and set(replaced) <= set(spoilt) and (damage is flip_byte_of_case_2 or replaced == spoilt)
    for k, (sample, before) in enumerate(zip(samples, whole, strict=True)):
        assert sample[1] == before[1]  # the mask is the sample's, whatever volume it is cut from
        assert k in replaced or sample == before
    for batch in batches:
        for key, voxels in zip(batch.keys, batch.volume_BCDHW.numpy(), strict=True):
            i = int(key.removeprefix("case_"))
            codes, all_codes = decode(index, i, voxels[0]), stored_code(SHAPES[i], i)
            corners = np.argwhere(all_codes == codes[0, 0, 0])
            assert any(np.array_equal(codes, all_codes[d : d + 4, h : h + 5, w : w + 6]) for d, h, w in corners)
    assert sum(batch.num_replaced for batch in batches) == len(replaced)
    assert all(bool(batch.damage) == bool(batch.num_replaced) for batch in batches)


def lost_beside(index: ShardIndex, damage) -> list[str]:
    """Other cases that a damage of case_2 takes along: those that stand in its file."""
    together = damage is remove_shard_of_case_2 or (damage is cut_file_of_case_2 and index.format == "webdataset")
    return ["case_3"] if together else []


@pytest.mark.parametrize("crops_per_volume", [1, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_samples_give_way_to_the_same_others_on_any_ranks_and_workers(index, damage, crops_per_volume):
    damage(index)
    settings = {"crops_per_volume": crops_per_volume}
    alone, _ = read(index, **settings)
    for size, micro, workers in [(1, 1, 0), (2, 2, 0), (3, 1, 0), (1, 5, 2), (2, 3, 2)]:
        assert read(index, size, micro, num_workers=workers, **settings)[0] == alone, (size, micro, workers)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_does_not_change_which_samples_give_way(index, damage):
    damage(index)
    assert read(index, cache_bytes=2**30)[0] == read(index)[0]


def test_damage_that_comes_while_the_loader_runs_costs_its_own_samples(index):
    whole, _ = read(index)
    batches = pretrain_batches(
        index, range(5), CROP, 2, World(), seed=4, cache_bytes=0, max_damaged_share=1, on_damage=lambda line: None
    )
    keys = [key for batch in itertools.islice(batches, 10) for key in batch.keys]
    assert keys == [key for key, _, _ in whole[:20]]
    for path in [*index.root.rglob("0"), *index.root.glob("*.tar")]:
        if path.is_file() and ("case_2" in path.as_posix() or path.name == index.volumes[2].shard):
            path.write_bytes(path.read_bytes()[:10])  # in place: the loader has it open
    later = list(itertools.islice(batches, 20))
    assert sum(batch.num_replaced for batch in later) >= 8
    assert "case_2" not in {key for batch in later for key in batch.keys}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_damage_is_told_once_in_one_line(index, workers):
    remove_shard_of_case_2(index)
    told: list[str] = []
    _, batches = read(index, num_workers=workers, on_damage=told.append)
    assert sum(batch.num_replaced for batch in batches) == 24  # two of five volumes in twelve epochs
    assert sorted(line.split(":")[0] for line in told) == ["skipped case_2", "skipped case_3"]
    assert not [line for line in told if "\n" in line or index.volumes[2].shard not in line]


def test_a_run_goes_on_up_to_the_allowed_share_and_stops_above_it_in_one_line(index):
    remove_shard_of_case_2(index)
    replaced = np.cumsum([batch.num_replaced for batch in read(index)[1]])
    # of what was read so far, but at least of an epoch: else the first damaged sample would stop every run
    highest = max(replaced / np.maximum(5, 2 * np.arange(1, len(replaced) + 1)))
    assert 0.4 <= highest < 0.6
    assert len(read(index, max_damaged_share=highest)[0]) == NUM_SAMPLES
    with pytest.raises(ShardError, match=r"^\d+ of \d+ samples can't be read, allowed is a share of 0\.\d+") as caught:
        read(index, max_damaged_share=highest - 0.01)
    assert "\n" not in str(caught.value) and "max_damaged_share" in str(caught.value)


def test_one_damaged_sample_of_many_does_not_stop_a_run_though_it_be_the_first(index):
    remove_shard_of_case_2(index)
    seed = next(seed for seed in range(99) if EpochOrder(5, seed).at(0)[1] == 2)
    batches = pretrain_batches(
        index, range(5), CROP, 1, World(), seed, cache_bytes=0, max_damaged_share=0.4, on_damage=lambda line: None
    )
    assert next(batches).num_replaced == 1 and sum(batch.num_replaced for batch in itertools.islice(batches, 4)) == 1


def test_a_pool_of_nothing_but_damage_is_an_error_not_an_endless_search(index):
    for shard in index.shards:
        path = index.root / shard.name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ShardError, match="100 volumes in a row can't be read, the last: case_"):
        read(index)


def blob_build(folder: Path, dtype: str = "float16") -> ShardIndex:
    """Two large scans of faint noise with a small bright blob each, in another corner."""
    root = folder / "archive"
    for i, corner in enumerate([(0, 0, 0), (64, 48, 40)]):
        image = np.random.default_rng(i).integers(1, 20, (96, 80, 72)).astype(np.int16)
        x, y, z = corner
        image[x : x + 32, y : y + 32, z : z + 32] += 1000
        write_nifti(root / f"imagesTr/case_{i}.nii.gz", image)
    header = {"name": "Blobs", "modality": {"0": "MRI"}, "labels": {"0": "background"}}
    (root / "dataset.json").write_text(json.dumps(header))
    return build(root, folder / "shards", BuildConfig(preprocess=KEEP_ALL, encoding={"dtype": dtype}))


@pytest.fixture(scope="module")
def blobs(tmp_path_factory) -> ShardIndex:
    return blob_build(tmp_path_factory.mktemp("blobs"))


def crops_of(index: ShardIndex, recipe: CropRecipe, keys: list[tuple[int, int]], pool=(0, 1)):
    answer = CropSet(index, pool, recipe, cache_bytes=0).__getitems__(Request(keys, None))
    assert answer.slot is None and answer.voxels_BCDHW is not None
    return answer.voxels_BCDHW, answer.samples


def test_a_wish_for_foreground_brings_anatomy_into_more_crops_and_is_the_same_every_time(blobs):
    keys, crop = [(epoch, sample) for epoch in range(40) for sample in range(2)], (24, 24, 24)
    shares = {}
    for wish in (0.0, 0.2, 0.5):
        recipe = CropRecipe(crop, seed=3, min_foreground=wish)
        voxels, samples = crops_of(blobs, recipe, keys)
        again, _ = crops_of(blobs, recipe, keys[::-1])
        assert np.array_equal(again[::-1], voxels) and not any(sample.damage for sample in samples)
        assert [sample.case for sample in samples] == ["case_0", "case_1"] * 40
        blob = voxels.astype(np.float32) > 0  # mean 0: all that is bright is above
        shares[wish] = blob.mean(axis=(1, 2, 3, 4))
    has_some = {wish: float((share > 0.1).mean()) for wish, share in shares.items()}
    assert has_some[0.0] < 0.5 and has_some[0.2] > has_some[0.0] + 0.3 and has_some[0.5] > has_some[0.0] + 0.3
    assert shares[0.5].mean() > 2 * shares[0.0].mean()


def test_without_a_wish_crop_and_mask_are_those_of_the_named_streams(blobs):
    crop, reader = (24, 90, 24), open_reader(blobs)
    keys = [(epoch, sample) for epoch in range(6) for sample in range(2)]
    voxels, samples = crops_of(blobs, CropRecipe(crop, seed=3), keys)
    for (epoch, sample), crop_CDHW, told in zip(keys, voxels, samples, strict=True):
        start = crop_start(stream(3, "crop", epoch, sample), blobs.volumes[sample].shape_DHW, crop)
        assert np.array_equal(crop_CDHW, reader.stored_crop(sample, start, crop))
        assert told.mask_seed == stream_seed(3, "mask", epoch, sample)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crops_per_volume", [2, 3])
def test_crops_of_one_volume_come_one_after_the_other_and_differ(index, workers, crops_per_volume):
    samples, _ = read(index, micro=4, crops_per_volume=crops_per_volume, num_workers=workers)
    epoch = 5 * crops_per_volume
    for first in range(0, NUM_SAMPLES, crops_per_volume):
        neighbours = samples[first : first + crops_per_volume]
        assert len({key for key, _, _ in neighbours}) == 1
        assert len({seed for _, seed, _ in neighbours}) == len(neighbours)
    for first in range(0, NUM_SAMPLES - epoch + 1, epoch):
        counts = Counter(key for key, _, _ in samples[first : first + epoch])
        assert counts == dict.fromkeys((f"case_{i}" for i in range(5)), crops_per_volume)
    assert len({voxels for _, _, voxels in samples}) > 0.9 * NUM_SAMPLES


def test_neighbours_read_together_are_the_crops_read_alone(blobs):
    recipe = CropRecipe((20, 20, 20), seed=1, crops_per_volume=3, mirror=(True, True, True), min_foreground=0.1)
    keys = [(0, sample) for sample in (3, 4, 5, 0, 1, 2)] + [(1, sample) for sample in (0, 5)]
    together, samples = crops_of(blobs, recipe, keys)
    for key, voxels, sample in zip(keys, together, samples, strict=True):
        alone, (alone_sample,) = crops_of(blobs, recipe, [key])
        assert np.array_equal(alone[0], voxels) and alone_sample == sample


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_int16_shards_give_the_float_volume_to_half_a_step(tmp_path, format, workers):
    # all voxels lie far above the middle of the window, so that scale and offset both matter
    window = {"intensity": "ct", "ct_window_hu": (-9000, 3000), "crop_to_content": False}
    fine = build_places(tmp_path, SHAPES, format, preprocess=window, encoding={"dtype": "int16"})
    steps = {volume.case: volume.scale for volume in fine.volumes}
    batches = pretrain_batches(fine, range(5), CROP, 3, World(), seed=4, num_workers=workers)
    seen = set()
    for batch in itertools.islice(batches, 10):
        for k, key in enumerate(batch.keys):
            i = int(key.removeprefix("case_"))
            numbers = fine.volumes[i].preprocess
            shift, scale = numbers["shift_C"][0], numbers["scale_C"][0]
            codes = decode(fine, i, batch.volume_BCDHW[k, 0].numpy())
            whole = place_code(SHAPES[i], i).transpose(2, 1, 0)
            corners = np.argwhere(whole == codes[0, 0, 0])
            places = [tuple(slice(a, a + n) for a, n in zip(corner, CROP, strict=True)) for corner in corners]
            (place,) = [place for place in places if np.array_equal(whole[place], codes)]
            exact = (whole[place] - shift) / scale
            error = np.abs(batch.volume_BCDHW[k, 0].double().numpy() - exact).max()
            assert error <= 0.5001 * steps[key] + 4e-7  # float32 itself
            assert batch.stored_BCDHW.dtype.itemsize == 2 and float(batch.scale_B[k]) == np.float32(steps[key])
            seen.add(key)
    assert len(seen) == 5


def test_a_volume_without_a_grid_of_its_anatomy_gives_way_like_any_other_damage(blobs):
    rows = [replace(blobs.volumes[0], foreground=b"no grid"), blobs.volumes[1]]
    recipe = CropRecipe((20, 20, 20), seed=1, min_foreground=0.1)
    _, (sample,) = crops_of(replace(blobs, volumes=rows), recipe, [(0, 0)])
    assert sample.case == "case_1" and "case_0" in sample.damage[0]
