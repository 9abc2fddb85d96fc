"""Dice + cross entropy against sums written out, and the weights of its scales."""

import pytest
import torch

from data_shards.labels import LabelMeaning, Region
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


REGIONS = LabelMeaning((Region("whole", (1, 2), 1), Region("core", (2,), 2)), ignore=3)


def regions_by_hand(logits_BRDHW: torch.Tensor, label_BDHW: torch.Tensor) -> float:
    """Voxels listed one by one: those with the ignore value are simply not there."""
    known = label_BDHW != 3
    prob, losses, entropies = logits_BRDHW.sigmoid(), [], []
    for r, values in enumerate(((1, 2), (2,))):
        truth = sum((label_BDHW == value).float() for value in values)[known]
        p = prob[:, r][known]
        losses.append(1 - (2 * (p * truth).sum() + 1e-5) / (p.sum() + truth.sum() + 1e-5))
        entropies.append(-(truth * p.log() + (1 - truth) * (1 - p).log()).mean())
    return float(sum(losses) / 2 + sum(entropies) / 2)


def test_regions_are_learnt_each_for_itself_and_voxels_nobody_annotated_not_at_all() -> None:
    logits = noise(2, 2, 4, 5, 6)
    label = torch.randint(0, 4, (2, 4, 5, 6), generator=torch.Generator().manual_seed(5))
    criterion = DeepSupervisionLoss(REGIONS)
    assert criterion([logits], label).item() == pytest.approx(regions_by_hand(logits, label), rel=1e-5)
    other = torch.where(label[:, None] == 3, 9 * noise(2, 2, 4, 5, 6, seed=8), logits)
    assert criterion([other], label).item() == pytest.approx(criterion([logits], label).item(), rel=1e-6)


def test_classes_with_voxels_nobody_annotated_lose_on_the_others_alone() -> None:
    criterion = DeepSupervisionLoss(LabelMeaning(ignore=3))
    logits, label = noise(1, 3, 4, 4, 4), labels(1, 4, 4, 4)
    half = label.clone()
    half[:, :2] = 3
    assert criterion([logits], half).item() == pytest.approx(by_hand(logits[:, :, 2:], label[:, 2:]), rel=1e-5)
    assert criterion([logits], torch.full_like(label, 3)).item() == pytest.approx(0, abs=1e-6), "nothing to learn from"
