"""Training one segmentation network on the labelled persons of one budget.

B batch, C channel, D H W voxels, K classes
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_shards.errors import InputError
from data_shards.labels import Labels
from data_shards.loading.labelled import LabelledCase, labelled_batches
from data_shards.order.streams import stream_seed
from maetrain.checkpoint.handover import HandoverReport, load_encoder
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.layers import layer_groups
from maetrain.finetune.prior import Head, class_shares, start_at
from maetrain.finetune.watch import Best, dice_on
from maetrain.losses.segmentation import DeepSupervisionLoss
from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer
from maetrain.train.group import RankInfo, sums_over_ranks
from maetrain.train.schedule import warmup_cosine, warmup_poly

_SCHEDULES = {"cosine": warmup_cosine, "poly": warmup_poly}


N = TypeVar("N", bound=nn.Module)


class Fitted(NamedTuple, Generic[N]):
    """`network` has the last weights (their running mean, with `ema_decay`); `best` none without validation cases."""

    network: N
    best: Best | None
    monitor_steps: list[int]
    monitor_dice: list[float]
    validation_dice: list[float]
    steps: int


def finetune(
    job: FinetuneJob,
    model: NNFormerConfig,
    config: FinetuneConfig,
    labels: Labels,
    train_cases: Sequence[LabelledCase],
    monitor_cases: Sequence[LabelledCase],
    who: RankInfo,
    on_metrics: Callable[[Mapping[str, float], int], None] = lambda *_: None,
    validation_cases: Sequence[LabelledCase] = (),
) -> tuple[Fitted[NNFormer], HandoverReport | None]:
    """An nnFormer from the job's start, trained as `fit` says; and how the start's weights were matched.

    The network's random weights depend on the job's seed alone and its heads on the persons, not on its arm: the arms
    are paired.
    """
    torch.manual_seed(stream_seed(job.seed, "finetune-init"))
    network = NNFormer(model, labels.num_outputs)
    if config.class_prior:
        heads = [cast(Head, head.conv) for head in network.heads]
        start_at(heads, class_shares(train_cases, labels), bool(labels.meaning.regions))
    report = load_encoder(Path(job.handover), network, config.pretrained_channels) if job.handover else None
    groups = layer_groups(network, config.pretrained_layer_decay if report else 1.0, report.matched if report else ())
    data = (labels, train_cases, monitor_cases)
    return fit(network, groups, job, config, *data, who, on_metrics, validation_cases), report


def fit(
    network: N,
    groups: list[dict],
    job: FinetuneJob,
    config: FinetuneConfig,
    labels: Labels,
    train_cases: Sequence[LabelledCase],
    monitor_cases: Sequence[LabelledCase],
    who: RankInfo,
    on_metrics: Callable[[Mapping[str, float], int], None] = lambda *_: None,
    validation_cases: Sequence[LabelledCase] = (),
) -> Fitted[N]:
    """Trains any network for `config.steps` steps, fewer only with `config.patience`.

    It gets (B, C, D, H, W) and gives a list of (B, K, D, H, W), full resolution first. `groups`: of its parameters,
    each with a `rate_scale`. The crops depend on the job's seed and budget alone, neither on its arm nor on the number
    of ranks, which share every batch. InputError where the loss is no longer a number: trying again would not help. A
    trial ends there with a Dice of 0, whatever the Dice of its last weights is: classes that are absent would count 1.
    """
    network.to(who.device)
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)) if config.ema_decay else None
    trained: nn.Module = network
    if who.world_size > 1:
        trained = DistributedDataParallel(network, device_ids=[who.device] if who.device.type == "cuda" else None)
    peak, schedule = job.peak(config), _SCHEDULES[config.schedule]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)
    criterion = DeepSupervisionLoss(labels.meaning)
    batches = labelled_batches(
        train_cases,
        config.crop_DHW,
        config.batch,
        stream_seed(job.seed, "finetune-data", job.budget),
        config.foreground_share,
        config.augment,
        ignore_label=labels.meaning.ignore,
        part=(who.rank, who.world_size),
    )
    result = network if mean is None else cast(N, mean.module)
    best = Best() if validation_cases else None
    steps, monitor_dice, validation_dice = list[int](), list[float](), list[float]()

    def measure(done: int) -> None:
        steps.append(done)
        found = {"monitor_dice": dice_on(result, monitor_cases, config.window_DHW, labels, who)}
        monitor_dice.append(found["monitor_dice"])
        if best is not None:
            found["validation_dice"] = dice_on(result, validation_cases, config.window_DHW, labels, who)
            validation_dice.append(found["validation_dice"])
            best.see(validation_dice[-1], done, result)
        on_metrics(found, done)

    measure(0)
    for step in range(config.steps):
        trained.train()
        torch.manual_seed(stream_seed(job.seed, "finetune-drop-path", step, who.rank))
        learning_rate = schedule(step, peak, config.warmup_steps, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_scale"]
        batch = next(batches)
        with torch.autocast(who.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = trained(batch.image_BCDHW.to(who.device))
        loss = criterion(logits, batch.label_BDHW.to(who.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        if mean is not None:
            mean.update_parameters(network)
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            value = float(loss.detach())
            mine = loss.detach().float().clone()[None]
            (total,) = sums_over_ranks(mine, who)  # all ranks hear of one's loss, and end together
            if not math.isfinite(total) and job.is_trial:
                lost = [0.0] if best is not None else []
                return Fitted(network.eval(), None, [*steps, done], [*monitor_dice, 0.0], validation_dice + lost, done)
            if not math.isfinite(total):
                raise InputError(
                    f"the loss is {total} after {done} steps at a peak of {peak:g}: lower the learning rate"
                )
            on_metrics({"train_loss": value, "learning_rate": learning_rate}, done)
        if done % config.monitor_every == 0 or done == config.steps:
            measure(done)
            if best is not None and config.patience and best.worse >= config.patience:
                break
    return Fitted(result.eval(), best, steps, monitor_dice, validation_dice, steps[-1])
