"""The masked autoencoder's loss: squared error on hidden voxels only.

B batch, M hidden (masked) units, P values in a unit
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def normalise_units(target_BMP: Tensor) -> Tensor:
    """Each unit to mean 0 and variance 1, in float32 (He et al. 2022, arXiv:2111.06377, "per-patch normalisation")."""
    target_BMP = target_BMP.float()
    mean = target_BMP.mean(-1, keepdim=True)
    var = target_BMP.var(-1, keepdim=True, correction=0)
    return (target_BMP - mean) / torch.sqrt(var + EPS)


def hidden_mse(pred_BMP: Tensor, target_BMP: Tensor, counts_BMP: Tensor | None = None) -> Tensor:
    """Mean over samples of the squared error over the values of a sample's hidden units.

    With `counts_BMP` (bool) over those values alone where it is True, 0 for a sample where nothing counts: each sample
    weighs the same, so a batch may be cut into any micro batches. Scalar, float32.
    """
    pred_BMP, target_BMP = pred_BMP.float(), target_BMP.float()
    if counts_BMP is None:
        return F.mse_loss(pred_BMP, target_BMP)  # fewer passes than below
    # blanked before the square: infinity times zero would be NaN, in the gradient too
    error_BMP = (pred_BMP - target_BMP).masked_fill(~counts_BMP, 0.0)
    return (error_BMP.square().sum((1, 2)) / counts_BMP.sum((1, 2)).clamp(min=1)).mean()
