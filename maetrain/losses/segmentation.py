"""Dice + cross entropy over the supervised scales, as nnFormer and nnU-Net train.

B batch, K classes, D H W voxels
"""

import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn


class DeepSupervisionLoss(nn.Module):
    """Soft Dice without background plus cross entropy, summed over scales with weights 1, 1/2, 1/4 ... normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def forward(self, logits: list[Tensor], label_BDHW: Tensor) -> Tensor:
        """`logits`: (B, K, D, H, W) per scale, full resolution first; `label_BDHW`: integer classes."""
        weights = [0.5**i for i in range(len(logits))]
        label_B1DHW = label_BDHW[:, None].float()
        total = logits[0].new_zeros(())
        for weight, scale_BKDHW in zip(weights, logits, strict=True):
            target = F.interpolate(label_B1DHW, scale_BKDHW.shape[2:], mode="nearest-exact")
            total = total + weight / sum(weights) * self.loss(scale_BKDHW.float(), target)
        return total
