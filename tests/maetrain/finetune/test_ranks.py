"""Two real ranks of a finetune job: each sees its part of every batch, and both end with the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.labels import Labels
from data_shards.loading.labelled import LabelledCase
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.train import finetune
from maetrain.train.group import joined_group

from ..small import SMALL
from ..tracking.stores import free_port

pytestmark = pytest.mark.runs


def train(out: Path) -> None:
    rng = np.random.default_rng(0)
    cases = [
        LabelledCase(f"c{i}", f"p{i}", rng.normal(size=(1, 20, 20, 20)).astype(np.float32), label, (1.0, 1.0, 1.0))
        for i, label in enumerate(rng.integers(0, 3, (3, 20, 20, 20)).astype(np.uint8))
    ]
    config = FinetuneConfig(
        crop_DHW=(16, 16, 16), window_DHW=(16, 16, 16), steps=3, warmup_steps=0, batch=4, log_every=1
    )
    job = FinetuneJob(budget=3, arm="scratch", seed=0, subjects=("p0", "p1", "p2"))
    losses: list[float] = []

    def heard(metrics: dict[str, float], _: int) -> None:
        losses.extend([metrics["train_loss"]] if "train_loss" in metrics else [])

    with joined_group() as who:
        fitted, _ = finetune(job, SMALL, config, Labels(("background", "a", "b")), cases, cases, who, heard)
        left = {"losses": losses, "dice": fitted.monitor_dice, "weights": fitted.network.state_dict()}
        torch.save(left, out / f"rank-{who.rank}-of-{who.world_size}.pt")


def left_by(out: Path, ranks: int) -> list[dict]:
    """What `ranks` processes leave."""
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen([sys.executable, "-m", __name__, out], env=os.environ | group | {"RANK": str(rank)})
        for rank in range(ranks)
    ]
    assert [process.wait(240) for process in started] == [0] * ranks
    return [torch.load(out / f"rank-{rank}-of-{ranks}.pt", weights_only=True) for rank in range(ranks)]


def test_ranks_see_other_crops_and_end_with_the_same_weights(tmp_path: Path) -> None:
    (alone,) = left_by(tmp_path, 1)
    first, second = left_by(tmp_path, 2)
    assert first["losses"] != second["losses"], "each has its own part of the batch"
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["dice"] == second["dice"], "of all monitor scans, which they share"
    assert (first["losses"][0] + second["losses"][0]) / 2 == pytest.approx(alone["losses"][0], abs=0.05)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
