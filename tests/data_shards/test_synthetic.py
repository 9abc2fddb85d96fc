import json

import numpy as np
import pytest

from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_image, read_label
from data_shards.synthetic import SyntheticConfig, draw_scan, write_archive

CONFIG = SyntheticConfig(num_subjects=6, shape_XYZ=(32, 36, 28), rescanned_share=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_archive(folder, CONFIG)
    return folder


def test_the_archive_reads_like_any_other_with_some_persons_scanned_twice(root):
    archive = read_archive(root)
    assert len(archive.cases) == 9 and len({case.subject for case in archive.cases}) == 6
    assert archive.class_names == ("background", "organ_1", "organ_2", "organ_3")
    for case in archive.cases:
        image = read_image(case.image_paths)
        label = read_label(case.label_path, image, 4)
        shares = [(label.data == k).mean() for k in range(4)]
        assert image.shape_XYZ == (32, 36, 28) and all(0.002 < share < 0.1 for share in shares[1:])


def test_equal_settings_write_equal_bytes(root, tmp_path):
    write_archive(tmp_path, CONFIG)
    for path in root.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(root)).read_bytes()


def test_persons_differ_and_a_second_scan_is_the_same_anatomy_seen_anew():
    (image, label), (again, label_again), (_, other) = (draw_scan(CONFIG, *who) for who in ((0, 0), (0, 1), (1, 0)))

    def dice(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * ((a == b) & (a > 0)).sum() / ((a > 0).sum() + (b > 0).sum())

    assert not np.array_equal(image, again)
    assert dice(label, label_again) > 0.75 > dice(label, other)


def test_brightness_alone_does_not_tell_the_organs_apart():
    """Look-alikes without a label overlap the organs' brightness, and scales differ from scan to scan."""
    image, label = draw_scan(CONFIG, 0, 0)
    low, high = np.percentile(image[label > 0], (5, 95))
    assert ((image >= low) & (image <= high) & (label == 0)).sum() > 0.02 * (label > 0).sum()
    assert len({int(np.log2(draw_scan(CONFIG, person, 0)[0].max())) for person in range(6)}) > 2


def test_settings_are_checked():
    for wrong in ({"num_subjects": 0}, {"num_classes": 1}, {"persons": 3}):
        with pytest.raises(ValueError):
            SyntheticConfig(**wrong)
    json.dumps(SyntheticConfig().model_dump())
