"""The numbers of a network must fit each other, and a wrong one is named with a way out."""

import pytest
from pydantic import ValidationError

from maetrain.models.config import NNFormerConfig, product_DHW


def test_strides_multiply_along_each_axis() -> None:
    synapse = NNFormerConfig(
        stem_strides=((2, 2, 2), (1, 2, 2)),
        depths=(2, 2, 2, 2),
        num_heads=(2, 4, 8, 8),
        windows=((4, 4, 4),) * 4,
        down_strides=((2, 2, 2),) * 3,
        decoder_depths=(2, 2, 2),
        decoder_heads=(2, 4, 8),
    )
    assert synapse.stem_stride == (2, 4, 4)
    assert synapse.total_stride == (16, 32, 32)
    assert [synapse.width(stage) for stage in range(4)] == [24, 48, 96, 192]
    assert product_DHW() == (1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_heads": (2, 4)}, "num_heads has 2 entries"),
        ({"windows": ((4, 4, 4),)}, "windows has 1 entries"),
        ({"down_strides": ((2, 2, 2),)}, "down_strides has 1 entries"),
        ({"decoder_heads": (2, 4, 8)}, "decoder_heads has 3 entries"),
        ({"num_heads": (2, 5, 8)}, r"num_heads\[1\] = 5 does not divide the width 48 of stage 1: use 4"),
        ({"num_heads": (0, 4, 8)}, r"num_heads\[0\] = 0 does not divide"),
        ({"supervised_scales": 3}, "supervised_scales = 3"),
        ({"windows": ((4, 4, 4), (4, 0, 4), (8, 8, 8))}, r"windows\[1\] = \(4, 0, 4\)"),
        ({"down_strides": ((2, 2, 2), (2, 2, 0))}, r"down_strides\[1\] = \(2, 2, 0\)"),
        ({"stem_strides": ((2, -2, 2), (1, 1, 1))}, r"stem_strides\[0\] = \(2, -2, 2\)"),
        ({"depths": (2, 0, 2)}, r"depths\[1\] = 0"),
        ({"decoder_depths": (0, 2)}, r"decoder_depths\[0\] = 0"),
        ({"embed_dim": 7}, "multiple of 2"),
    ],
)
def test_numbers_that_do_not_fit_are_named(settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NNFormerConfig(**settings)
