"""Training one segmentation network on the labelled persons of one budget.

B batch, C channel, D H W voxels, K classes
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_shards.loading.labelled import LabelledCase, labelled_batches
from data_shards.order.streams import stream_seed
from maetrain.checkpoint.handover import HandoverReport, load_encoder
from maetrain.evaluate.predict import probabilities_KDHW
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.layers import layer_groups
from maetrain.losses.segmentation import DeepSupervisionLoss
from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer
from maetrain.train.schedule import warmup_cosine


class Finetuned(NamedTuple):
    network: NNFormer
    handover: HandoverReport | None
    monitor_steps: list[int]
    monitor_dice: list[float]


def mean_dice(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    """Mean over foreground classes; a class absent from both counts 1."""
    scores = []
    for k in range(1, num_classes):
        p, t = predicted == k, label == k
        total = p.sum() + t.sum()
        scores.append(2.0 * (p & t).sum() / total if total else 1.0)
    return float(np.mean(scores))


def monitor(network: NNFormer, cases: Sequence[LabelledCase], config: FinetuneConfig) -> float:
    """Mean Dice on the monitor persons, on the shards' grid: for the convergence curve, never for a choice."""
    network.eval()
    scores = []
    for case in cases:
        prob = probabilities_KDHW(network, torch.from_numpy(np.array(case.image_CDHW)), config.window_DHW)
        scores.append(mean_dice(prob.argmax(0).numpy(), case.label_DHW, network.num_classes))
    return float(np.mean(scores))


def finetune(
    job: FinetuneJob,
    model: NNFormerConfig,
    config: FinetuneConfig,
    num_classes: int,
    train_cases: Sequence[LabelledCase],
    monitor_cases: Sequence[LabelledCase],
    device: torch.device,
    on_metrics: Callable[[dict[str, float], int], None] = lambda *_: None,
) -> Finetuned:
    """Trains for exactly `config.steps` steps; the last weights are the result, so nothing is chosen.

    The network's random weights and the crops depend on the job's seed and budget alone, not on its arm:
    the arms are paired.
    """
    torch.manual_seed(stream_seed(job.seed, "finetune-init"))
    network = NNFormer(model, num_classes)
    report, peak, layer_decay = None, config.learning_rate, 1.0
    if job.handover:
        report = load_encoder(Path(job.handover), network, config.pretrained_channels)
        peak, layer_decay = config.pretrained_learning_rate, config.pretrained_layer_decay
    network.to(device)
    groups = layer_groups(network, layer_decay, report.matched if report else ())
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)
    criterion = DeepSupervisionLoss()
    data_seed = stream_seed(job.seed, "finetune-data", job.budget)
    batches = labelled_batches(
        train_cases, config.crop_DHW, config.batch, data_seed, config.foreground_share, config.augment
    )
    steps, dice = [0], [monitor(network, monitor_cases, config)]
    for step in range(config.steps):
        network.train()
        torch.manual_seed(stream_seed(job.seed, "finetune-drop-path", step))
        learning_rate = warmup_cosine(step, peak, config.warmup_steps, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_scale"]
        batch = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = network(batch.image_BCDHW.to(device))
        loss = criterion(logits, batch.label_BDHW.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            on_metrics({"train_loss": float(loss.detach()), "learning_rate": learning_rate}, done)
        if done % config.monitor_every == 0 or done == config.steps:
            steps.append(done)
            dice.append(monitor(network, monitor_cases, config))
            on_metrics({"monitor_dice": dice[-1]}, done)
    return Finetuned(network.eval(), report, steps, dice)
