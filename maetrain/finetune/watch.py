"""Dice during training, on whole scans in the shards' grid: the convergence curve, and the choice of the best weights.

B batch, C channel, D H W voxels, K classes
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.labels import Labels, is_one_of
from data_shards.loading.labelled import LabelledCase
from maetrain.evaluate.predict import probabilities_KDHW
from maetrain.models.config import Triple
from maetrain.train.group import RankInfo, sums_over_ranks


def mean_dice(predicted: np.ndarray, label: np.ndarray, labels: Labels) -> float:
    """Mean over the targets; one absent from both counts 1. Voxels that nobody annotated are left out."""
    scores = []
    is_known = label != labels.meaning.ignore if labels.meaning.ignore is not None else True
    for target in labels.targets:
        p, t = is_one_of(predicted, target) & is_known, is_one_of(label, target)
        total = p.sum() + t.sum()
        scores.append(2.0 * (p & t).sum() / total if total else 1.0)
    return float(np.mean(scores))


def dice_on(
    network: nn.Module, cases: Sequence[LabelledCase], window_DHW: Triple, labels: Labels, who: RankInfo
) -> float:
    """Mean over `cases`, which the ranks share between them; every rank gets it."""
    network.eval()
    sums = torch.zeros(2, device=who.device)
    for case in cases[who.rank :: who.world_size]:
        image_CDHW = torch.from_numpy(np.array(case.image_CDHW))
        prob_KDHW = probabilities_KDHW(network, image_CDHW, window_DHW, overlapping=bool(labels.meaning.regions))
        predicted_DHW = labels.meaning.winners(prob_KDHW.numpy())
        sums += torch.tensor([mean_dice(predicted_DHW, case.label_DHW, labels), 1.0], device=who.device)
    dice, count = sums_over_ranks(sums, who)
    return dice / count


@dataclass
class Best:
    """The weights with the highest validation Dice so far, the earliest of equals."""

    dice: float = -1.0
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    worse: int = 0  # measurements since

    def see(self, dice: float, step: int, network: nn.Module) -> None:
        if dice > self.dice:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.dice, self.step, self.weights, self.worse = dice, step, weights, 0
        else:
            self.worse += 1
