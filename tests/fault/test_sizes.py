"""A run that changes its number of ranks, and its ZeRO stage, at each start: the losses of one process, each scan once.

A stage ends with a stop (SIGTERM to one of the ranks: saved, exit code 143) or with the death of a rank, in turn.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.formats.index import ShardIndex
from maetrain.train.config import PretrainSetup
from tests.maetrain.small import SMALL_MAE, small_setup

from .faulty_train import Fault
from .ranks import Group, assert_tidy, committed, losses, trained_on

SIZES = (2, 1, 3, 2, 1, 3, 2)
STEPS = 5 * len(SIZES)


def plain(index: ShardIndex, run_dir: Path, **changes: object) -> PretrainSetup:
    return small_setup(index, run_dir, **({"steps": STEPS, "checkpoint_every": 2, "global_batch": 4} | changes))


def uneven(index: ShardIndex, run_dir: Path, **changes: object) -> PretrainSetup:
    """Batches that don't divide, layers that are dropped at random, and voxels that don't count."""
    setup = plain(index, run_dir, global_batch=5, mae=SMALL_MAE.model_copy(update={"ignore_flat": 0.0}), **changes)
    return setup.model_copy(update={"model": setup.model.model_copy(update={"drop_path": 0.2})})


@pytest.fixture(scope="module")
def alone(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of one process, which nothing happened to."""
    found = {}
    for setup_of in (plain, uneven):
        setup = setup_of(index, tmp_path_factory.mktemp("alone") / "run")
        with Group(setup, 1) as group:
            group.finish()
        found[setup_of.__name__] = losses(setup.run_dir)
        assert len(set(found[setup_of.__name__])) == STEPS, "losses that never change would agree, too"
    return found


CHAINS = [
    pytest.param(plain, (0,) * 7, marks=pytest.mark.faults, id="ZeRO 0"),
    pytest.param(plain, (1,) * 7, marks=pytest.mark.faults, id="ZeRO 1"),
    pytest.param(uneven, (2,) * 7, marks=pytest.mark.faults, id="ZeRO 2, uneven"),
    pytest.param(plain, (3,) * 7, marks=pytest.mark.faults, id="ZeRO 3"),
    pytest.param(uneven, (3, 0, 2, 1, 3, 2, 0), marks=pytest.mark.runs, id="another stage each time, uneven"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("setup_of", "stages"), CHAINS)
def test_another_number_of_ranks_at_each_start(
    setup_of: Callable[..., PretrainSetup],
    stages: tuple[int, ...],
    index: ShardIndex,
    alone: dict[str, list[float]],
    tmp_path: Path,
) -> None:
    # every second stage is stopped, the others are killed, each time another rank
    ends = [
        Fault(at="update", do=("term", "kill")[i % 2], rank=i % size, step=5 * (i + 1))
        for i, size in enumerate(SIZES[:-1])
    ]
    for i, (size, stage) in enumerate(zip(SIZES, stages, strict=True)):
        setup = setup_of(index, tmp_path / "run", zero_stage=stage)
        from_step = max(committed(setup.run_dir), default=0)
        with Group(setup, size, ends[i : i + 1], name=f"run-{i}", record=True, start=i) as group:
            codes = group.wait()
            assert group.steps[:1] == [from_step + 1]
            if i == len(SIZES) - 1:
                assert codes == [0] * size, group.tails()
            elif ends[i].do == "term":
                assert codes == [128 + signal.SIGTERM] * size, f"{codes}\n{group.tails()}"
                assert f"stopped at step {5 * (i + 1)}, which is saved" in group.log()
                assert max(committed(setup.run_dir)) == 5 * (i + 1)
            else:
                assert codes[ends[i].rank or 0] == -signal.SIGKILL, f"{codes}\n{group.tails()}"
    assert losses(setup.run_dir) == pytest.approx(alone[setup_of.__name__], abs=1e-5)
    assert_tidy(setup.run_dir, STEPS, keep=2)
    assert_each_scan_once_an_epoch(tmp_path, index, setup.pretrain.global_batch)


def assert_each_scan_once_an_epoch(folder: Path, index: ShardIndex, global_batch: int) -> None:
    history = trained_on(folder / "record")
    assert list(history) == list(range(1, STEPS + 1)), "what the last of the steps of a number was trained on"
    assert {len(keys) for keys in history.values()} == {global_batch}
    order = [key for keys in history.values() for key in keys]
    scans = sorted(volume.case for volume in index.volumes)
    epochs = [order[i : i + len(scans)] for i in range(0, len(order), len(scans))]
    assert all(sorted(epoch) == scans for epoch in epochs[:-1]) and len(epochs) > 8
    assert len(set(epochs[-1])) == len(epochs[-1]) and len({tuple(epoch) for epoch in epochs}) == len(epochs)
