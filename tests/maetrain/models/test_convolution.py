"""The matrix products give what torch's convolutions give."""

import pytest
import torch
import torch.nn.functional as F

from maetrain.models.config import Triple
from maetrain.models.convolution import SLOW_FOR_ONE, Conv, Expand, channels_first, channels_last

from ..small import noise


@pytest.mark.parametrize(
    ("width", "size", "kernel", "stride", "padding", "remark"),
    [
        (1, (16, 12, 12), (3, 3, 3), (2, 2, 2), (1, 1, 1), "one image channel: two halves"),
        (4, (4, 12, 12), (3, 3, 3), (2, 2, 2), (1, 1, 1), "halves of one slice"),
        (4, (14, 12, 12), (3, 3, 3), (1, 2, 2), (1, 1, 1), "no stride along D, as in ACDC's stem"),
        (24, (2, 2, 2), (3, 3, 3), (2, 2, 2), (1, 1, 1), "one output: a product"),
        (24, (5, 4, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1), "odd: a product"),
        (24, (4, 6, 5), (1, 3, 3), (1, 2, 2), (0, 1, 1), "no stride along D: a convolution"),
        (24, (7, 4, 4), (3, 3, 3), (2, 2, 2), (0, 1, 1), "no padding along D"),
        (24, (12, 12, 12), (3, 3, 3), (2, 2, 2), (1, 1, 1), "many outputs: two halves"),
        (24, (12, 12, 12), (3, 3, 3), (1, 1, 1), (1, 1, 1), "halves that overlap"),
        (24, (10, 12, 12), (3, 3, 3), (2, 2, 2), (1, 1, 1), "an odd number of output slices: whole"),
        (24, (13, 8, 8), (3, 3, 3), (2, 2, 2), (0, 1, 1), "halves of an odd size without padding along D"),
        (24, (32, 32, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), "large enough for torch's fast kernel"),
    ],
)
def test_conv_is_torchs_convolution(
    width: int, size: Triple, kernel: Triple, stride: Triple, padding: Triple, remark: str
) -> None:
    torch.manual_seed(0)
    conv = Conv(width, 48, kernel, stride, padding)
    x = noise(1, *size, width).requires_grad_()
    want = channels_last(F.conv3d(channels_first(x), conv.weight, conv.bias, stride, padding))
    got = conv(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    weights = noise(*want.shape, seed=1)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), (x, *conv.parameters())),
        torch.autograd.grad((want * weights).sum(), (x, *conv.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stride", "want_size", "output_padding"),
    [((2, 2, 2), (6, 4, 8), 0), ((1, 2, 4), (3, 4, 16), 0), ((2, 2, 2), (7, 4, 8), (1, 0, 0))],
)
def test_expand_is_a_transposed_convolution(stride: Triple, want_size: Triple, output_padding: object) -> None:
    torch.manual_seed(0)
    expand, x = Expand(6, 5, stride), noise(2, 3, 2, 4, 6)
    want = F.conv_transpose3d(channels_first(x), expand.weight, expand.bias, stride, output_padding=output_padding)
    torch.testing.assert_close(channels_first(expand(x, want_size)), want, atol=1e-5, rtol=1e-5)
    short: Triple = tuple(n - 1 for n in want_size)  # type: ignore[assignment]
    cut = want[:, :, : short[0], : short[1], : short[2]]
    torch.testing.assert_close(channels_first(expand(x, short)), cut, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "size", "halves"), [(1, (12, 12, 12), True), (2, (12, 12, 12), False), (1, (32, 32, 4), False)]
)
def test_only_a_small_single_sample_is_cut_in_halves(batch: int, size: Triple, halves: bool) -> None:
    conv, seen = Conv(24, 48, (3, 3, 3), (1, 1, 1), (1, 1, 1)), []
    assert (batch == 1 and 24 * size[0] * size[1] <= SLOW_FOR_ONE) is halves
    as_two = conv._as_two
    conv._as_two = lambda x, half: seen.append(half) or as_two(x, half)  # type: ignore[method-assign, func-returns-value]
    conv(noise(batch, *size, 24))
    assert seen == ([size[0] // 2] if halves else [])
