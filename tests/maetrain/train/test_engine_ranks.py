"""A run's state moves between ZeRO stages and numbers of ranks: real processes, each of which runs this file.

Two ranks train and save under every stage; three ranks and one load that, save it again, and go on training.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from maetrain.checkpoint.commit import CheckpointManifest, commit, read_committed, write_rank_file
from maetrain.checkpoint.fragments import assemble, to_named
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train import engine as engine_module
from maetrain.train.config import PretrainConfig
from maetrain.train.engine import MOMENTS, Engine
from maetrain.train.group import RankInfo, joined_group

from ..small import SMALL, SMALL_MAE, load_full, noise

pytestmark = pytest.mark.runs

KINDS = ("weight", *MOMENTS)
# "persistent": 0: ZeRO 3 keeps no parameter gathered; else it keeps all of the small network
ENGINES: dict[str, dict] = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "zero-3-gathers": {"zero_stage": 3, "persistent": 0},
    "zero-3-offload": {"zero_stage": 3, "offload": True},
}
WRITERS = ("zero-0", "zero-1", "zero-2", "zero-3", "zero-3-offload")
# written by two ranks under the first, read under the second
READERS: dict[int, list[tuple[str, str]]] = {
    3: [
        ("zero-2", "zero-2"),
        ("zero-3", "zero-3"),
        ("zero-0", "zero-3-gathers"),
        ("zero-1", "zero-3-offload"),
        ("zero-3", "zero-1"),
        ("zero-3-offload", "zero-0"),
    ],
    1: [("zero-1", "zero-2"), ("zero-2", "zero-3"), ("zero-3", "zero-0"), ("zero-3-offload", "zero-3-gathers")],
}


@dataclass(frozen=True)
class Worker:
    """What each rank does; it leaves `results.json` (of all ranks) beside the checkpoints."""

    who: RankInfo
    folder: Path

    def engine(self, name: str, seed: int) -> Engine:
        settings = {"persistent": 100_000} | ENGINES[name]
        engine_module.PERSISTENT_ELEMENTS = settings.pop("persistent")
        engine_module.BUCKET_ELEMENTS = 1000  # several buckets, and parameters that are larger than one
        torch.manual_seed(seed)
        model = SMALL.model_copy(update={"drop_path": 0.0})  # it is drawn per rank
        batch = {"global_batch": 6, "micro_batch": 6 // self.who.world_size}
        config = PretrainConfig(mae=SMALL_MAE, crop_DHW=(16, 16, 16), **batch, **settings)
        return Engine(MaskedAutoencoder(model, SMALL_MAE), config, self.who)

    def train(self, engine: Engine, steps: range, spoil: bool = False) -> list[float]:
        """Losses over all ranks. `spoil`: one element of one gradient of this rank is NaN."""
        losses = []
        share = 6 // self.who.world_size
        mine = slice(self.who.rank * share, (self.who.rank + 1) * share)
        for step in steps:
            loss = engine(noise(6, 1, 16, 16, 16, seed=step)[mine], 6 * step + torch.arange(6)[mine]).loss
            token_E = engine.wrapped.module.mask_token_E
            hook = token_E.register_hook(lambda g: g.index_fill(0, torch.tensor([3]), nan) if spoil else g)
            engine.backward(loss)
            hook.remove()
            engine.step(1e-3 / (step + 1))
            losses.append(float(sum(self.of_all(float(loss.detach()))) / self.who.world_size))
        return losses

    def of_all(self, value: object) -> list:
        values: list = [None] * self.who.world_size
        dist.all_gather_object(values, value)
        return values

    def save(self, engine: Engine, name: str) -> None:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        files = self.of_all(write_rank_file(place, self.who.rank, to_named(engine.save_fragments())))
        if self.who.is_first:
            manifest = CheckpointManifest(
                step=2,
                samples_seen=12,
                world_size=self.who.world_size,
                shard_index_sha256="",
                fingerprint="",
                config={},
                tensor_shapes=engine.shapes,
                state={},
                files=tuple(files),
            )
            commit(place, manifest)
        dist.barrier()

    def write(self) -> dict[str, object]:
        results = {}
        for name in WRITERS:
            engine = self.engine(name, seed=1)
            self.train(engine, range(2))
            self.save(engine, name)
            losses = self.train(engine, range(2, 4))
            before = to_named(engine.save_fragments())
            self.train(engine, range(4, 5), spoil=self.who.rank == 1)
            skipped, after = engine.skipped, to_named(engine.save_fragments())
            is_same = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
            good = self.train(engine, range(5, 6))
            skipped_after = engine.skipped
            load_full(engine, state_in(self.folder / name), updates=2)
            again = self.train(engine, range(2, 4))
            results[name] = {
                "losses": losses,
                "skipped": self.of_all(skipped),
                "unchanged": self.of_all(is_same),
                "good": good,
                "skipped after": self.of_all(skipped_after),
                "again": again,
            }
            engine.close()
        return results

    def read(self) -> dict[str, object]:
        results = {}
        for saved, name in READERS[self.who.world_size]:
            engine = self.engine(name, seed=2)
            load_full(engine, state_in(self.folder / saved), updates=2)
            self.save(engine, f"{saved}-{name}-{self.who.world_size}")
            results[f"{saved} {name}"] = self.train(engine, range(2, 4))
            engine.close()
        return results


def state_in(folder: Path) -> dict[str, dict[str, Tensor]]:
    return assemble(folder, read_committed(folder), KINDS)


def work(action: str, folder: Path) -> None:
    with joined_group() as who:
        worker = Worker(who, folder)
        results = worker.write() if action == "write" else worker.read()
        if who.is_first:
            (folder / f"{action}-{who.world_size}.json").write_text(json.dumps(results))


def launch(action: str, folder: Path, ranks: int) -> dict:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), "-m", __name__, action, str(folder)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{action}-{ranks}.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    yield folder, launch("write", folder, 2)


def test_a_gradient_that_is_no_number_on_one_rank_skips_the_step_on_all(written: tuple[Path, dict]) -> None:
    _, results = written
    assert set(results) == set(WRITERS)
    for name, found in results.items():
        assert found["skipped"] == [True, True] and found["skipped after"] == [False, False], name
        assert found["unchanged"] == [True, True], name
        for key in ("losses", "good"):
            assert found[key] == pytest.approx(results["zero-0"][key], rel=1e-6), name


def test_several_ranks_go_back_in_the_middle_of_training(written: tuple[Path, dict]) -> None:
    for name, found in written[1].items():  # what ZeRO 3 had gathered is another tensor only where there are ranks
        assert found["again"] == found["losses"], name


@pytest.mark.parametrize("ranks", READERS)
def test_what_two_ranks_saved_is_the_same_on_another_number_under_any_stage(
    written: tuple[Path, dict], ranks: int
) -> None:
    folder, trained = written
    results = launch("read", folder, ranks)
    for saved, name in READERS[ranks]:
        before, after = state_in(folder / saved), state_in(folder / f"{saved}-{name}-{ranks}")
        for kind in KINDS:
            assert any(tensor.any() for tensor in before[kind].values())
            for parameter, tensor in before[kind].items():
                assert torch.equal(tensor, after[kind][parameter]), f"{saved} to {name}: {kind} of {parameter}"
        assert results[f"{saved} {name}"] == pytest.approx(trained[saved]["losses"], rel=1e-6), f"{saved} to {name}"


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
