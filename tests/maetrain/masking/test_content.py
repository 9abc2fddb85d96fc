"""Flat regions are found whatever their value; anatomy is not."""

import torch

from maetrain.masking.content import has_content_BDHW

from ..small import noise


def test_a_flat_region_has_no_content_and_its_rim_has() -> None:
    volume = noise(2, 1, 8, 6, 6)
    volume[1, :, :5] = 7.0
    content = has_content_BDHW(volume, 0.0)
    assert content[0].all()
    assert not content[1, :4].any() and content[1, 4:].all()


def test_one_channel_that_varies_is_enough_and_small_noise_may_be_tolerated() -> None:
    volume = torch.zeros(1, 2, 4, 4, 4)
    volume[:, 1] = 0.1 * noise(1, 4, 4, 4).clamp(-1, 1)
    assert has_content_BDHW(volume, 0.0).all() and not has_content_BDHW(volume, 0.2).any()
