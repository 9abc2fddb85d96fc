"""One tiny job on two synthetic persons: it learns, repeats to the bit, and its arms are paired."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.labels import LabelMeaning, Labels, Region
from data_shards.loading.labelled import LabelledCase, load_labelled
from maetrain.finetune import train
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.train import Fitted, finetune
from maetrain.finetune.watch import mean_dice
from maetrain.models.segmentation import NNFormer
from maetrain.train.group import RankInfo

from ..small import SMALL, hand_over

THREE = Labels(("background", "a", "b"))
CPU = RankInfo(0, 1, torch.device("cpu"))
CONFIG = FinetuneConfig(
    crop_DHW=(16, 16, 16),
    window_DHW=(16, 16, 16),
    steps=30,
    warmup_steps=3,
    learning_rate=5e-3,
    monitor_every=20,
    log_every=1,
)
SHORT = CONFIG.model_copy(update={"steps": 3})


@pytest.fixture(scope="module")
def cases(small_index: ShardIndex) -> list[LabelledCase]:
    return load_labelled(small_index, ("person_000", "person_001"))


@pytest.fixture(scope="module")
def handover(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("handover")
    torch.manual_seed(77)
    return str(hand_over(folder, []))


def job(arm: str = "scratch", seed: int = 0, handover: str | None = None) -> FinetuneJob:
    return FinetuneJob(budget=2, arm=arm, seed=seed, subjects=("person_000", "person_001"), handover=handover)


def run(what: FinetuneJob, cases: list[LabelledCase], config: FinetuneConfig = SHORT) -> Fitted[NNFormer]:
    return finetune(what, SMALL, config, THREE, cases, cases[:1], CPU)[0]


def test_a_job_lowers_its_loss_and_draws_its_curve(cases: list[LabelledCase]) -> None:
    heard: list[tuple[dict[str, float], int]] = []
    trained, report = finetune(job(), SMALL, CONFIG, THREE, cases, cases[:1], CPU, lambda *m: heard.append(m))
    losses = [metrics["train_loss"] for metrics, _ in heard if "train_loss" in metrics]
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert trained.monitor_steps == [0, 20, 30] and len(trained.monitor_dice) == 3
    assert [step for metrics, step in heard if "monitor_dice" in metrics] == [0, 20, 30]
    assert all(0 <= dice <= 1 for dice in trained.monitor_dice)
    assert report is None and not trained.network.training


def test_the_same_job_twice_gives_equal_weights_and_another_seed_others(cases: list[LabelledCase]) -> None:
    one, two, other = (run(job(seed=seed), cases).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_both_arms_see_the_same_crops_in_the_same_order(
    cases: list[LabelledCase], handover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    batches = train.labelled_batches

    def spy(*arguments: object, **named: object) -> object:
        seen.append([])
        for batch in batches(*arguments, **named):  # type: ignore[arg-type]
            seen[-1].append((batch.image_BCDHW.clone(), batch.label_BDHW.clone()))
            yield batch

    monkeypatch.setattr(train, "labelled_batches", spy)
    run(job(), cases)
    run(job("mae", handover=handover), cases)
    scratch, mae = seen
    assert len(scratch) == len(mae) == 3
    for (image_a, label_a), (image_b, label_b) in zip(scratch, mae, strict=True):
        assert torch.equal(image_a, image_b) and torch.equal(label_a, label_b)
    assert not torch.equal(scratch[0][0], scratch[1][0])


def test_arms_differ_in_the_encoder_alone_when_they_start(cases: list[LabelledCase], handover: str) -> None:
    still = SHORT.model_copy(update={"steps": 1, "learning_rate": 1e-30, "pretrained_learning_rate": 1e-30})
    scratch = run(job(), cases, still).network.state_dict()
    what = job("mae", handover=handover)
    trained, report = finetune(what, SMALL, still, THREE, cases, cases[:1], CPU)
    mae = trained.network.state_dict()
    assert report is not None and not report.unused
    for name in scratch:
        if not name.startswith("encoder."):
            torch.testing.assert_close(scratch[name], mae[name], atol=1e-25, rtol=0, msg=name)
    conv = "encoder.stem.block1.conv1.weight"
    assert (scratch[conv] - mae[conv]).abs().max() > 0.01


def test_the_learning_rate_of_an_arm_is_the_one_set_for_it(cases: list[LabelledCase], handover: str) -> None:
    config = SHORT.model_copy(update={"warmup_steps": 0, "learning_rate": 3e-3, "pretrained_learning_rate": 1e-4})
    for what, peak in ((job(), 3e-3), (job("mae", handover=handover), 1e-4)):
        heard: list[dict[str, float]] = []
        finetune(
            what, SMALL, config, THREE, cases, cases[:1], CPU, lambda metrics, _, heard=heard: heard.append(metrics)
        )
        assert next(metrics["learning_rate"] for metrics in heard if "learning_rate" in metrics) == peak


@pytest.mark.parametrize("is_trial", [False, True])
def test_a_loss_that_is_no_number_ends_a_job_and_not_a_trial(
    cases: list[LabelledCase], is_trial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.DeepSupervisionLoss, "forward", lambda _, logits, label: logits[0].sum() * math.nan)
    what = job().model_copy(update={"is_trial": is_trial})
    if is_trial:
        lost = run(what, cases)
        assert lost.steps == 1 and lost.monitor_steps == [0, 1]
        assert lost.monitor_dice[-1] == 0.0, "absent classes count 1, so the weights' own Dice says nothing"
    else:
        with pytest.raises(InputError, match=r"loss is nan after 1 steps at a peak of 0\.005: lower the learning rate"):
            run(what, cases)


def test_mean_dice_counts_foreground_classes_one_by_one() -> None:
    label, predicted = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 0, 1, 0])
    assert mean_dice(predicted, label, THREE) == pytest.approx((2 * 1 / 4 + 0) / 2)
    assert mean_dice(predicted, label, Labels((*THREE.class_names, "c"))) == pytest.approx((0.5 + 0 + 1) / 3), (
        "a class in neither counts 1"
    )


def test_mean_dice_counts_regions_whole_and_leaves_out_what_nobody_annotated() -> None:
    meaning = LabelMeaning((Region("whole", (1, 2), 1), Region("core", (2,), 2)), ignore=3)
    labels = Labels(("background", "label 1", "core", "ignore"), meaning)
    label, predicted = np.array([1, 2, 2, 0, 3, 3]), np.array([1, 1, 2, 0, 2, 1])
    assert mean_dice(predicted, label, labels) == pytest.approx((1 + 2 * 1 / 3) / 2)


def test_the_folder_of_a_handover_that_is_gone_is_named(cases: list[LabelledCase], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder handover"):
        run(job("mae", handover=str(tmp_path / "gone")), cases)


def test_layer_decay_slows_the_encoder_of_a_pretrained_arm_and_never_that_of_scratch(
    cases: list[LabelledCase], handover: str
) -> None:
    decayed = SHORT.model_copy(update={"pretrained_layer_decay": 0.01})
    stem, head = "encoder.stem.block1.conv1.weight", "heads.0.conv.weight"
    start = SHORT.model_copy(update={"steps": 1, "learning_rate": 1e-30, "pretrained_learning_rate": 1e-30})
    for what, is_slowed in ((job(), False), (job("mae", handover=handover), True)):
        before, plain, slow = (run(what, cases, config).network.state_dict() for config in (start, SHORT, decayed))
        assert torch.equal(plain[stem], slow[stem]) is not is_slowed
        if is_slowed:
            assert (slow[stem] - before[stem]).abs().max() < 1e-6 < (plain[stem] - before[stem]).abs().max()
            assert (slow[head] - before[head]).abs().max() > 1e-4


def test_bf16_autocast_learns_as_fp32_does_and_keeps_fp32_weights(cases: list[LabelledCase]) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        heard: list[float] = []
        config = CONFIG.model_copy(update={"precision": precision})
        trained, _ = finetune(
            job(),
            SMALL,
            config,
            THREE,
            cases,
            cases[:1],
            CPU,
            lambda m, _, heard=heard: heard.append(m.get("train_loss", 0)),
        )
        losses[precision] = np.array([loss for loss in heard if loss])
        assert all(p.dtype == torch.float32 for p in trained.network.parameters())
    assert not np.array_equal(losses["fp32"], losses["bf16"]), "bf16 computes in fewer digits"
    assert np.abs(losses["fp32"] - losses["bf16"])[:5].max() < 0.02


def test_a_jobs_own_learning_rate_goes_before_the_settings(cases: list[LabelledCase]) -> None:
    heard: list[dict[str, float]] = []
    config = SHORT.model_copy(update={"warmup_steps": 0})
    what = job().model_copy(update={"learning_rate": 7e-4})
    finetune(what, SMALL, config, THREE, cases, cases[:1], CPU, lambda metrics, _: heard.append(metrics))
    assert next(metrics["learning_rate"] for metrics in heard if "learning_rate" in metrics) == 7e-4


def test_the_running_mean_is_what_is_kept_and_measured(
    cases: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: m0 = first weights, m = decay * m + (1 - decay) * w after each step."""
    config = SHORT.model_copy(update={"ema_decay": 0.6})
    by_step: list[dict[str, torch.Tensor]] = []
    update = train.AveragedModel.update_parameters

    def spy(self: torch.optim.swa_utils.AveragedModel, model: torch.nn.Module) -> None:
        by_step.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
        update(self, model)

    monkeypatch.setattr(train.AveragedModel, "update_parameters", spy)
    kept = run(job(), cases, config).network.state_dict()
    assert len(by_step) == 3
    name = "heads.0.conv.weight"
    expected = by_step[0][name]
    for weights in by_step[1:]:
        expected = 0.6 * expected + 0.4 * weights[name]
    torch.testing.assert_close(kept[name], expected)
    assert not torch.equal(kept[name], by_step[-1][name])


def test_the_best_weights_on_validation_are_remembered_and_patience_ends_a_job_early(
    cases: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = iter([0.1, 0.5, 0.4, 0.45, 0.3, 0.2, 0.9])
    monkeypatch.setattr(
        train, "dice_on", lambda _n, found, *_: next(curve) if found is validation else 0.0
    )  # monitor persons have no say
    validation = cases[1:]
    changes = {"steps": 6, "monitor_every": 1, "validation_share": 0.5, "patience": 3}
    config = SHORT.model_copy(update=changes)
    trained, _ = finetune(job(), SMALL, config, THREE, cases[:1], cases[:1], CPU, lambda *_: None, validation)
    assert trained.best is not None and (trained.best.step, trained.best.dice) == (1, 0.5)
    assert trained.validation_dice == [0.1, 0.5, 0.4, 0.45, 0.3] and trained.steps == 4
    one_step = run(job(), cases[:1], SHORT.model_copy(update={"steps": 6, "monitor_every": 1}))
    assert one_step.best is None
    name = "heads.0.conv.weight"
    assert not torch.equal(trained.best.weights[name], trained.network.state_dict()[name])


def test_a_schedule_by_name_is_the_one_that_runs(cases: list[LabelledCase]) -> None:
    rates = {}
    for name in ("cosine", "poly"):
        heard: list[float] = []
        config = SHORT.model_copy(update={"schedule": name, "warmup_steps": 1, "steps": 5})
        finetune(
            job(),
            SMALL,
            config,
            THREE,
            cases,
            cases[:1],
            CPU,
            lambda m, _, heard=heard: heard.append(m["learning_rate"]) if "learning_rate" in m else None,
        )
        rates[name] = heard
    assert rates["poly"] == pytest.approx([5e-3 * share for share in (1, 1, 0.75**0.9, 0.5**0.9, 0.25**0.9)])
    assert rates["cosine"] != rates["poly"] and rates["cosine"][0] == rates["poly"][0]
