"""Heads that start at how often each class occurs, as a detector's does that knows most of an image is background
(Lin et al., Focal Loss, ICCV 2017, section 4.1). Measured: decision 0027.

K network outputs (classes, or regions)
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from data_shards.labels import Labels, is_one_of
from data_shards.loading.labelled import LabelledCase

Head = nn.Conv3d | nn.ConvTranspose3d


def class_shares(cases: Sequence[LabelledCase], labels: Labels) -> Tensor:
    """(K,) float32: of the voxels that somebody annotated, the share of each class, the background first, or region.

    In (0, 1): a voxel is added to each count, so that a class which these cases don't hold has a share, too.
    """
    ignore, regions = labels.meaning.ignore, bool(labels.meaning.regions)
    counts, known = torch.zeros(labels.num_outputs), 0
    for case in cases:
        here = case.label_DHW.size if ignore is None else int((case.label_DHW != ignore).sum())
        inside = [int(is_one_of(case.label_DHW, target).sum()) for target in labels.targets]
        counts += torch.tensor(inside if regions else [here - sum(inside), *inside])
        known += here
    return (counts + 1) / (known + (2 if regions else labels.num_outputs))


def start_at(heads: Iterable[Head], shares_K: Tensor, are_regions: bool) -> None:
    """Sets the biases of a network's last layers: where the rest adds nothing, its probabilities are `shares_K`."""
    logits_K = shares_K.logit() if are_regions else shares_K.log()
    with torch.no_grad():
        for head in heads:
            assert head.bias is not None
            head.bias.copy_(logits_K)
