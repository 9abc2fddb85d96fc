import itertools

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.loading.augment_config import AugmentConfig
from data_shards.loading.labelled import LabelledCase, labelled_batches, load_labelled
from tests.data_shards.helpers import build_places

OFF = AugmentConfig(enabled=False)
CROP = (4, 5, 6)


def marked_case(i: int) -> LabelledCase:
    """Voxels are their own flat place + 20000 * i; class 1 is one far corner voxel, class 2 a small block."""
    shape = (20, 22, 24)
    label = np.zeros(shape, np.uint8)
    label[18, 20, 22] = 1
    label[3:6, 3:6, 3:6] = 2
    image = np.arange(label.size, dtype=np.float32).reshape(1, *shape) + 20_000 * i
    return LabelledCase(f"c{i}", f"p{i}", image, label, (1.0, 1.0, 1.0))


CASES = [marked_case(i) for i in range(3)]


def read(num_steps: int, share: float = 0.5, augment: AugmentConfig = OFF, **settings):
    return list(itertools.islice(labelled_batches(CASES, CROP, 2, 0, share, augment, **settings), num_steps))


def test_labelled_scans_are_loaded_by_person(tmp_path):
    index = build_places(tmp_path, [(8, 9, 10), (7, 12, 6), (10, 6, 9)])
    cases = load_labelled(index, ["case_2", "case_0"])
    assert [(case.case, case.subject) for case in cases] == [("case_2", "case_2"), ("case_0", "case_0")]
    assert cases[0].image_CDHW.shape == (1, 9, 6, 10) and cases[0].label_DHW.shape == (9, 6, 10)
    with pytest.raises(InputError, match="person nobody has no labelled scan"):
        load_labelled(index, ["case_0", "nobody"])


def test_image_and_label_of_a_crop_come_from_the_same_place():
    seen = []
    for batch in read(30):
        assert batch.image_BCDHW.dtype == torch.float32 and batch.label_BDHW.dtype == torch.int64
        assert batch.image_BCDHW.shape == (2, 1, *CROP) and batch.label_BDHW.shape == (2, *CROP)
        for image, label in zip(batch.image_BCDHW[:, 0].numpy(), batch.label_BDHW.numpy(), strict=True):
            i, place = divmod(int(image.flat[0]), 20_000)
            d, h, w = np.unravel_index(place, CASES[i].label_DHW.shape)
            box = np.s_[d : d + 4, h : h + 5, w : w + 6]
            assert np.array_equal(CASES[i].image_CDHW[0][box], image)
            assert np.array_equal(CASES[i].label_DHW[box], label)
            seen.append(i)
    assert [seen.count(i) for i in range(3)] == [20, 20, 20]  # every case once an epoch


@pytest.mark.parametrize(("share", "low", "high"), [(1.0, 200, 200), (0.0, 0, 40), (0.5, 80, 130)])
def test_the_share_of_crops_with_foreground_is_what_was_asked(share, low, high):
    has_foreground = [bool(label.any()) for batch in read(100, share) for label in batch.label_BDHW]
    assert low <= sum(has_foreground) <= high


def test_a_class_of_one_voxel_is_drawn_as_often_as_a_large_one():
    crops = [label for batch in read(100, 1.0) for label in batch.label_BDHW]
    assert 70 < sum(bool((label == 1).any()) for label in crops) < 130


def test_the_same_seed_and_step_give_the_same_batch():
    def voxels(batches):
        return [(b.image_BCDHW.numpy().tobytes(), b.label_BDHW.numpy().tobytes()) for b in batches]

    strong = AugmentConfig()
    assert voxels(read(8, augment=strong)) == voxels(read(8, augment=strong))
    assert voxels(read(3, augment=strong, start_step=5)) == voxels(read(8, augment=strong))[5:]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_parts_of_all_ranks_are_the_whole_batch(ranks):
    whole = list(itertools.islice(labelled_batches(CASES, CROP, 4, 0, 0.5, AugmentConfig()), 5))
    parts = [
        list(itertools.islice(labelled_batches(CASES, CROP, 4, 0, 0.5, AugmentConfig(), part=(rank, ranks)), 5))
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        for of in ("image_BCDHW", "label_BDHW"):
            assert torch.equal(torch.cat([getattr(part[step], of) for part in parts]), getattr(batch, of))


def test_no_crop_is_centred_on_what_nobody_annotated():
    without = [np.where(case.label_DHW == 2, 0, case.label_DHW) for case in CASES]
    cases = [
        LabelledCase(c.case, c.subject, c.image_CDHW, label, c.spacing_mm)
        for c, label in zip(CASES, without, strict=True)
    ]
    ignoring = labelled_batches(CASES, CROP, 2, 0, 1.0, OFF, ignore_label=2)
    unlabelled = labelled_batches(cases, CROP, 2, 0, 1.0, OFF)
    for one, other in itertools.islice(zip(ignoring, unlabelled, strict=True), 10):
        assert torch.equal(one.image_BCDHW, other.image_BCDHW)


def test_crops_beyond_a_small_scan_are_air_and_background():
    (batch,) = itertools.islice(labelled_batches(CASES[:1], (30, 30, 30), 1, 0, 1.0, OFF), 1)
    image, label = batch.image_BCDHW[0, 0], batch.label_BDHW[0]
    assert image.min() == 0 and (image > 0).sum() == 20 * 22 * 24 - 1
    assert (label == 2).sum() == 27 and (label == 1).sum() == 1


def test_no_cases_is_an_error():
    with pytest.raises(InputError, match="no labelled scans"):
        next(labelled_batches([], CROP, 1, 0, 0.5, OFF))
