"""Dice + cross entropy against sums written out, and the weights of its scales."""

import pytest
import torch

from maetrain.losses.segmentation import DeepSupervisionLoss

from ..small import noise

CRITERION = DeepSupervisionLoss()


def by_hand(logits_BKDHW: torch.Tensor, label_BDHW: torch.Tensor) -> float:
    """Soft Dice over the batch without background, smoothed by 1e-5 as in MONAI, plus mean cross entropy."""
    prob = logits_BKDHW.softmax(1)
    dice = []
    for k in range(1, prob.shape[1]):
        is_class = (label_BDHW == k).float()
        both, total = (prob[:, k] * is_class).sum(), prob[:, k].sum() + is_class.sum()
        dice.append(1 - (2 * both + 1e-5) / (total + 1e-5))
    chosen = prob.gather(1, label_BDHW[:, None])
    return float(sum(dice) / len(dice) - chosen.log().mean())


def labels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(4))


def test_one_scale_is_dice_plus_cross_entropy() -> None:
    logits, label = noise(2, 3, 4, 5, 6), labels(2, 4, 5, 6)
    assert CRITERION([logits], label).item() == pytest.approx(by_hand(logits, label), rel=1e-5)


def test_coarser_scales_count_half_and_a_quarter_of_the_finest() -> None:
    label = labels(2, 8, 8, 8)
    scales = [noise(2, 3, n, n, n, seed=n) for n in (8, 4, 2)]
    single = [
        by_hand(scales[0], label),
        # the centre of a coarse voxel lies between fine ones; "nearest-exact" takes the one behind
        by_hand(scales[1], label[:, 1::2, 1::2, 1::2]),
        by_hand(scales[2], label[:, 2::4, 2::4, 2::4]),
    ]
    want = (single[0] + single[1] / 2 + single[2] / 4) / 1.75
    assert CRITERION(scales, label).item() == pytest.approx(want, rel=1e-5)


def test_a_sure_and_right_network_has_no_loss_and_a_sure_and_wrong_one_a_large_one() -> None:
    label = labels(1, 4, 4, 4)
    sure = 30 * torch.nn.functional.one_hot(label, 3).permute(0, 4, 1, 2, 3).float()
    assert CRITERION([sure], label) < 1e-3
    assert CRITERION([sure.roll(1, dims=1)], label) > 5
