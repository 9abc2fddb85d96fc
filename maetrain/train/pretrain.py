"""MAE pretraining: one loop for one process, torchrun and Ray Train.

Everything random is drawn from (seed, purpose, step or sample), so nothing of it needs saving, and the state of a
run is its weights, its AdamW moments and the number of samples seen. Drop path alone is drawn per rank and step: with
`model.drop_path` > 0 another number of ranks gives another, equally good curve. The loop doesn't know who started it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.loading.pretrain import pretrain_batches
from data_shards.order.streams import stream_seed
from data_shards.order.world import World
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve, CurvePoint
from maetrain.train.engine import Engine
from maetrain.train.group import RankInfo
from maetrain.train.prefetch import on_device
from maetrain.train.resume import Done, bind_run, restore, save_checkpoint
from maetrain.train.schedule import warmup_cosine


@dataclass(frozen=True)
class StepInfo:
    """What one optimizer step was like, on the first rank."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    step_s: float
    data_wait_s: float
    volumes_per_s: float
    num_replaced: int  # samples, over all ranks since they started, whose scan could not be read


def pool_of(index: ShardIndex, subjects: tuple[str, ...]) -> list[int]:
    """Positions in the index of all scans of `subjects`. InputError where that is nothing."""
    pool: list[int] = index.volumes.where("subject", subjects).tolist()
    if not pool:
        raise InputError(f"{index.root}: none of its {len(index.volumes)} scans may be seen by pretraining; add scans")
    return pool


def pretrain(
    setup: PretrainSetup,
    who: RankInfo,
    on_step: Callable[[StepInfo], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Runs, or goes on with, the run in `setup.run_dir`; returns the loss curve (complete on the first rank).

    Raises InputError for settings that don't fit the data or the run that is already in `run_dir`.
    """
    config, run_dir = setup.pretrain, Path(setup.run_dir)
    index = ShardIndex.load(setup.shards)
    pool = pool_of(index, setup.pool_subjects)
    accumulation = config.accumulation(who.world_size)
    bind_run(setup, index.sha256, who)

    torch.manual_seed(stream_seed(config.seed, "init"))
    engine = Engine(MaskedAutoencoder(setup.model, config.mae), config, who)
    restored = restore(setup, engine, index.sha256, who, say)
    done = restored or Done(0, 0)
    curve = Curve.load(run_dir / "curve.jsonl").until(done.step)
    batches = pretrain_batches(
        index,
        pool,
        config.crop_DHW,
        config.micro_batch,
        World(who.rank, who.world_size),
        config.seed,
        samples_seen=done.samples_seen,
        num_workers=config.loader_workers,
        mirror=config.mirror_DHW,
        crops_per_volume=config.crops_per_volume,
        min_foreground=config.min_foreground,
        max_damaged_share=config.max_damaged_share,
        on_damage=say,
        pin_memory=who.device.type == "cuda",
    )
    batches, num_replaced = on_device(batches, who.device), 0
    samples_seen = done.samples_seen
    if restored is None:  # also shows at once whether the folder can be written
        save_checkpoint(setup, engine, index.sha256, 0, 0, who)
    for step in range(done.step, config.steps):
        started, waited = time.perf_counter(), 0.0
        torch.manual_seed(stream_seed(config.seed, "drop-path", step, who.rank))
        learning_rate = warmup_cosine(step, config.learning_rate, config.warmup_steps, config.steps)
        losses = []
        for _ in range(accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            output = engine(batch.volume_BCDHW, batch.seeds_B)
            engine.backward(output.loss)
            engine.step(learning_rate)
            losses.append(output.loss.detach())
            samples_seen = batch.samples_seen_after
            num_replaced += batch.num_replaced
        mean_loss = torch.stack(losses).mean().float()
        loss, replaced = means_over_ranks(torch.stack([mean_loss, mean_loss.new_tensor(num_replaced)]), who)
        taken = time.perf_counter() - started
        info = StepInfo(
            step + 1,
            config.steps,
            loss,
            learning_rate,
            engine.gradient_norm(),
            taken,
            waited,
            config.global_batch / taken,
            round(replaced * who.world_size),
        )
        curve.append(CurvePoint(step + 1, loss, info.volumes_per_s))
        if who.is_first:
            on_step(info)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            # the curve first: points beyond the newest checkpoint are cut off at resume, missing ones would stay away
            if who.is_first:
                curve.save(run_dir / "curve.jsonl")
            save_checkpoint(setup, engine, index.sha256, step + 1, samples_seen, who)
    return curve


def means_over_ranks(values: torch.Tensor, who: RankInfo) -> list[float]:
    """Each of the float32 `values` as its mean over all ranks."""
    if who.world_size > 1:
        dist.all_reduce(values)
        values = values / who.world_size
    return values.tolist()
