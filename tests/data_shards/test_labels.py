"""Label values, and what they mean beyond one class a value."""

import numpy as np

from data_shards.labels import LabelMeaning, Labels, Region, is_one_of

PLAIN = Labels(("background", "a", "b"))
BRATS = Labels(
    ("background", "label 1", "label 2", "enhancing", "ignore"),
    LabelMeaning((Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3)), 4),
)


def test_a_plain_value_is_a_class_and_a_region_may_have_several():
    assert [(t.name, t.values) for t in PLAIN.targets] == [("a", (1,)), ("b", (2,))]
    assert [(t.name, t.values) for t in BRATS.targets] == [("whole", (1, 2, 3)), ("core", (2, 3)), ("enhancing", (3,))]
    assert (PLAIN.num_outputs, BRATS.num_outputs) == (3, 3), (
        "the background has an output of its own, regions have none"
    )


def test_later_regions_are_written_over_earlier_ones():
    is_region = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 1], [0, 0, 1, 0, 0]], bool)
    assert BRATS.meaning.written(is_region).tolist() == [1, 2, 3, 0, 2]


def test_what_is_written_is_read_as_the_same_regions():
    nested = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], bool)
    written = BRATS.meaning.written(nested)
    assert np.array_equal([is_one_of(written, target) for target in BRATS.targets], nested)


def test_the_largest_share_wins_among_classes_and_each_likely_region_is_there():
    shares = np.array([[0.2, 0.6, 0.4], [0.5, 0.3, 0.4], [0.3, 0.1, 0.2]], np.float32)
    assert PLAIN.meaning.winners(iter(shares)).tolist() == [1, 0, 0], "the first of equals"
    assert BRATS.meaning.winners(iter(np.array([[0.9, 0.9, 0.5], [0.2, 0.8, 0.5], [0.1, 0.6, 0.5]]))).tolist() == [
        1,
        3,
        0,
    ]
