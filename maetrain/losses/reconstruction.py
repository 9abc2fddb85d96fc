"""The masked autoencoder's loss: squared error on hidden voxels only.

B batch, G mask units, P values in a unit
"""

import torch
from torch import Tensor


def normalise_units(target_BGP: Tensor, eps: float = 1e-6) -> Tensor:
    """Each unit to mean 0 and variance 1 (He et al. 2022, arXiv:2111.06377, "per-patch normalisation")."""
    mean = target_BGP.mean(-1, keepdim=True)
    var = target_BGP.var(-1, keepdim=True)
    return (target_BGP - mean) / torch.sqrt(var + eps)


def hidden_mse(pred_BGP: Tensor, target_BGP: Tensor, is_hidden_BG: Tensor) -> Tensor:
    """Mean squared error over the values of hidden units; visible ones don't count. Scalar, float32."""
    error_BG = (pred_BGP.float() - target_BGP.float()).square().mean(-1)
    weight_BG = is_hidden_BG.to(error_BG.dtype)
    return (error_BG * weight_BG).sum() / weight_BG.sum()
