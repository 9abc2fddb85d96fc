import numpy as np

from data_shards.order.streams import stream, stream_seed


def test_equal_names_give_equal_draws_and_any_other_name_gives_others():
    first = stream(1, "crop", 0, 5).random(4)
    assert np.array_equal(first, stream(1, "crop", np.int64(0), 5).random(4))
    for other in [(2, "crop", 0, 5), (1, "mask", 0, 5), (1, "crop", 5, 0), (1, "crop", 0, "5"), (1, "crop", 0)]:
        assert not np.array_equal(first, stream(*other).random(4)), other


def test_the_stream_is_the_same_today_and_tomorrow():
    """A changed hash or generator would silently change every resumed run."""
    assert stream_seed(7, "mask", 3, 11) == 5034716055768760424
    assert stream(7, "mask", 3, 11).integers(0, 1000, 4).tolist() == [373, 146, 659, 685]


def test_seeds_fit_into_int64():
    assert all(0 <= stream_seed(0, "mask", 0, sample) < 2**63 for sample in range(200))
