"""Dice + cross entropy over the supervised scales, as nnFormer and nnU-Net train.

B batch, K network outputs (classes, or regions), D H W voxels
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from data_shards.labels import PLAIN, LabelMeaning


class DeepSupervisionLoss(nn.Module):
    """Soft Dice plus cross entropy, summed over scales with weights 1, 1/2, 1/4 ... normalised.

    Classes: softmax, Dice without the background. Regions, which overlap: a sigmoid each, binary cross entropy. Voxels
    with the ignore value are left out of both. The soft Dice is taken over the whole batch (of a rank).
    """

    def __init__(self, meaning: LabelMeaning = PLAIN) -> None:
        super().__init__()
        self.meaning = meaning
        self.dice = DiceLoss(include_background=bool(meaning.regions), batch=True)

    def forward(self, logits: list[Tensor], label_BDHW: Tensor) -> Tensor:
        """`logits`: (B, K, D, H, W) per scale, full resolution first; `label_BDHW`: integer label values."""
        weights = [0.5**i for i in range(len(logits))]
        label_B1DHW = label_BDHW[:, None].float()
        total = logits[0].new_zeros(())
        for weight, scale_BKDHW in zip(weights, logits, strict=True):
            label = F.interpolate(label_B1DHW, scale_BKDHW.shape[2:], mode="nearest-exact").long()
            total = total + weight / sum(weights) * self._at_scale(scale_BKDHW.float(), label)
        return total

    def _at_scale(self, logits_BKDHW: Tensor, label_B1DHW: Tensor) -> Tensor:
        is_known_B1DHW = None if self.meaning.ignore is None else label_B1DHW != self.meaning.ignore
        if self.meaning.regions:
            regions = [_is_one_of(label_B1DHW, region.values) for region in self.meaning.regions]
            truth_BKDHW = torch.cat(regions, dim=1).float()
            prob_BKDHW = logits_BKDHW.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logits_BKDHW, truth_BKDHW, reduction="none").mean(1)
        else:
            known = label_B1DHW if is_known_B1DHW is None else label_B1DHW * is_known_B1DHW
            truth_BKDHW = F.one_hot(known[:, 0], logits_BKDHW.shape[1]).movedim(-1, 1).float()
            prob_BKDHW = logits_BKDHW.softmax(1)
            entropy = F.cross_entropy(logits_BKDHW, known[:, 0], reduction="none")
        if is_known_B1DHW is None:
            return self.dice(prob_BKDHW, truth_BKDHW) + entropy.mean()
        is_known_BDHW = is_known_B1DHW[:, 0]
        dice = self.dice(prob_BKDHW * is_known_B1DHW, truth_BKDHW * is_known_B1DHW)
        return dice + (entropy * is_known_BDHW).sum() / is_known_BDHW.sum().clamp(min=1)


def _is_one_of(label: Tensor, values: Sequence[int]) -> Tensor:
    return torch.isin(label, torch.tensor(values, device=label.device))
