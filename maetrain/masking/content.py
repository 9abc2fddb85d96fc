"""Where a crop holds anything to predict.

Air, padding and faces blanked for anonymity come out of preprocessing as one constant value, whatever the modality. So
they are found by their flatness, without a threshold on intensities and without a mask in the archive.
"""

import torch.nn.functional as F
from torch import Tensor


def has_content_BDHW(volume_BCDHW: Tensor, flat_range: float) -> Tensor:
    """Bool (B, D, H, W): True where some channel varies by more than `flat_range` (in normalised intensities, >= 0)
    within the 3^3 voxels around."""
    highest = F.max_pool3d(volume_BCDHW, 3, 1, 1)
    lowest = -F.max_pool3d(-volume_BCDHW, 3, 1, 1)
    return (highest - lowest > flat_range).any(dim=1)
