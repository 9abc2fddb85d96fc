"""What a network predicts before it has learnt: how often each class occurs, and nothing of it when that is off."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.labels import LabelMeaning, Labels, Region
from data_shards.loading.labelled import LabelledCase
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.prior import class_shares, start_at
from maetrain.finetune.train import finetune
from maetrain.models.segmentation import NNFormer
from maetrain.train.group import alone

from ..small import SMALL, hand_over

NAMES = ("background", "a", "b", "rest")
PLAIN = Labels(NAMES)
IGNORING = Labels(NAMES, LabelMeaning(ignore=3))
REGIONS = Labels(NAMES, LabelMeaning((Region("whole", (1, 2), 1), Region("core", (2,), 2)), ignore=3))


def case(counts: tuple[int, int, int, int]) -> LabelledCase:
    """A scan of 16^3 voxels, `counts` of them of each value and the others background."""
    label = np.zeros(16**3, np.uint8)
    label[: sum(counts)] = np.repeat(np.arange(4), counts)
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    return LabelledCase("c", "p", image, label.reshape(16, 16, 16), (1, 1, 1))


CASES = [case((0, 100, 20, 300)), case((0, 300, 0, 0))]
ALL = 2 * 16**3


@pytest.mark.parametrize(
    ("labels", "counts", "of"),
    [
        (PLAIN, (ALL - 720, 400, 20, 300), ALL + 4),
        (IGNORING, (ALL - 300 - 420, 400, 20), ALL - 300 + 3),
        (REGIONS, (420, 20), ALL - 300 + 2),
    ],
)
def test_shares_are_of_all_annotated_voxels_with_one_more_of_each(
    labels: Labels, counts: tuple[int, ...], of: int
) -> None:
    expected = torch.tensor([(count + 1) / of for count in counts])
    torch.testing.assert_close(class_shares(CASES, labels), expected)


def test_a_class_that_nobody_has_is_rare_and_not_impossible() -> None:
    shares = class_shares([case((0, 50, 0, 0))], PLAIN)
    assert 0 < float(shares[2]) < 1e-3 and float(shares.sum()) == pytest.approx(1)


@pytest.mark.parametrize("labels", [PLAIN, IGNORING, REGIONS])
def test_heads_that_see_nothing_predict_the_shares_at_each_scale(labels: Labels) -> None:
    architecture = SMALL.model_copy(update={"supervised_scales": 2})
    network, shares = NNFormer(architecture, labels.num_outputs).eval(), class_shares(CASES, labels)
    start_at((head.conv for head in network.heads), shares, bool(labels.meaning.regions))
    for head in network.heads:
        torch.nn.init.zeros_(head.conv.weight)
    scales = network(torch.zeros(1, 1, 16, 16, 16))
    assert len(scales) == 2
    for logits_BKDHW in scales:
        found = logits_BKDHW.sigmoid() if labels.meaning.regions else logits_BKDHW.softmax(1)
        torch.testing.assert_close(found, shares[None, :, None, None, None].expand_as(found))


@pytest.mark.parametrize("arm", ["scratch", "mae"])
@pytest.mark.parametrize("class_prior", [True, False])
def test_a_job_starts_there_whatever_its_arm_unless_told_otherwise(tmp_path: Path, arm: str, class_prior: bool) -> None:
    handover = None if arm == "scratch" else str(hand_over(tmp_path, []))
    job = FinetuneJob(budget=1, arm=arm, seed=0, subjects=("p",), handover=handover)
    config = FinetuneConfig(
        crop_DHW=(16, 16, 16),
        steps=1,
        warmup_steps=0,
        learning_rate=1e-30,
        pretrained_learning_rate=1e-30,
        class_prior=class_prior,
    )
    fitted, _ = finetune(job, SMALL, config, PLAIN, CASES, CASES[:1], alone())
    for head in fitted.network.heads:
        expected = class_shares(CASES, PLAIN).log() if class_prior else torch.zeros(4)
        torch.testing.assert_close(head.conv.bias.detach(), expected, atol=1e-6, rtol=0)
