"""State leaves and enters DeepSpeed whole, and a broken-off run goes on as if nothing had happened.

One process, one process group for the whole file: DeepSpeed keeps the first group it is given.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import CheckpointManifest, commit, newest_committed, read_committed, write_rank_file
from maetrain.checkpoint.fragments import assemble, to_named
from maetrain.checkpoint.handover import load_encoder, read_pool
from maetrain.models.mae import MaskedAutoencoder
from maetrain.models.segmentation import NNFormer
from maetrain.train import pretrain as loop
from maetrain.train.config import PretrainConfig, PretrainSetup
from maetrain.train.curve import Curve
from maetrain.train.engine import MOMENTS, Engine
from maetrain.train.export import export_encoder, load_autoencoder
from maetrain.train.group import RankInfo, joined_group
from maetrain.train.picture import rebuilt_crop

from ..small import SMALL, SMALL_MAE, noise, small_setup

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def who() -> Iterator[RankInfo]:
    with joined_group() as info:
        yield info


def make_engine(who: RankInfo, seed: int, **settings: object) -> Engine:
    torch.manual_seed(seed)
    config = PretrainConfig(mae=SMALL_MAE, crop_DHW=(16, 16, 16), global_batch=2, micro_batch=2, **settings)
    return Engine(MaskedAutoencoder(SMALL, SMALL_MAE), config, who)


def train(engine: Engine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)  # drop path
        output = engine(noise(2, 1, 16, 16, 16, seed=step), torch.tensor([2 * step, 2 * step + 1]))
        engine.backward(output.loss)
        engine.step(1e-3 / (step + 1))
        losses.append(float(output.loss.detach()))
    return losses


def test_the_autoencoder_is_compiled_where_the_settings_say_so(who: RankInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []  # tests/maetrain/models hold that what is compiled gives the same numbers
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f.__name__) or f)
    plain = train(make_engine(who, 0), range(2))
    assert "reconstruct" not in compiled  # DeepSpeed compiles functions of its own when it is imported
    assert train(make_engine(who, 0, compile=True), range(2)) == plain
    assert compiled.count("reconstruct") == 1


def through_files(engine: Engine, folder: Path) -> dict[str, dict[str, Tensor]]:
    """The engine's state by way of a committed checkpoint."""
    folder.mkdir()
    file = write_rank_file(folder, 0, to_named(engine.save_fragments()))
    manifest = CheckpointManifest(
        step=2,
        samples_seen=4,
        world_size=1,
        shard_index_sha256="",
        fingerprint="",
        config={},
        tensor_shapes=engine.shapes,
        state={},
        files=(file,),
    )
    commit(folder, manifest)
    return assemble(folder, read_committed(folder), ("weight", *MOMENTS))


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 2, "precision": "bf16"}],
    ids=["zero-0", "zero-1", "zero-2", "zero-2-bf16"],
)
def test_an_engine_filled_from_fragments_goes_on_to_the_last_bit(who: RankInfo, tmp_path: Path, settings: dict) -> None:
    first = make_engine(who, seed=1, **settings)
    before = train(first, range(2))
    state = through_files(first, tmp_path / "two-steps")
    want = train(first, range(2, 5))

    second = make_engine(who, seed=2, **settings)
    second.load_full(state, steps_done=2)
    assert train(second, range(2, 5)) == want
    assert before[0] != want[0] and all(loss == loss for loss in want)
    ends = [through_files(engine, tmp_path / f"end-{i}") for i, engine in enumerate((first, second))]
    for kind in ("weight", *MOMENTS):
        assert set(ends[0][kind]) == set(first.shapes)
        for name in first.shapes:
            assert torch.equal(ends[0][kind][name], ends[1][kind][name]), f"{kind} of {name}"
        assert any(ends[0][kind][name].any() for name in first.shapes), f"{kind} is empty"


def test_zero_stages_agree_on_the_first_losses(who: RankInfo) -> None:
    losses = [train(make_engine(who, seed=1, zero_stage=stage), range(3)) for stage in (0, 1, 2)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


class Crash(Exception):
    """The planted fault."""


def crash_after(step: int) -> object:
    def on_step(info: loop.StepInfo) -> None:
        if info.step == step:
            raise Crash

    return on_step


@pytest.fixture(scope="module")
def whole(who: RankInfo, small_index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> PretrainSetup:
    """A run of six steps that nothing disturbed."""
    setup = small_setup(small_index, tmp_path_factory.mktemp("whole"), zero_stage=2)
    loop.pretrain(setup, who)
    return setup


def losses_of(run_dir: Path | str) -> list[float]:
    curve = Curve.load(Path(run_dir) / "curve.jsonl")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    return [point.loss for point in curve]


def test_a_run_that_crashed_ends_with_the_curve_and_weights_of_one_that_did_not(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    setup = small_setup(small_index, tmp_path, zero_stage=2)
    with pytest.raises(Crash):
        loop.pretrain(setup, who, crash_after(3))  # type: ignore[arg-type]
    heard: list[str] = []
    loop.pretrain(setup, who, say=heard.append)
    assert heard == [f"resumed at step 2 from {tmp_path / 'checkpoints' / 'step-00000002'}"]
    assert losses_of(tmp_path) == losses_of(whole.run_dir)
    ours, theirs = load_autoencoder(tmp_path)[0], load_autoencoder(Path(whole.run_dir))[0]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_a_crash_right_behind_a_commit_leaves_no_hole_in_the_curve(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, save = small_setup(small_index, tmp_path, zero_stage=2), loop.save_checkpoint

    def save_and_crash(*arguments: object) -> Path:
        folder = save(*arguments)  # type: ignore[arg-type]
        if folder.name == "step-00000004":
            raise Crash
        return folder

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(loop, "save_checkpoint", save_and_crash)
        loop.pretrain(setup, who)
    loop.pretrain(setup, who)
    assert losses_of(tmp_path) == losses_of(whole.run_dir)


def test_a_damaged_checkpoint_is_passed_over_said_and_written_again(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    setup = small_setup(small_index, tmp_path, zero_stage=2)
    with pytest.raises(Crash):
        loop.pretrain(setup, who, crash_after(5))  # type: ignore[arg-type]
    damaged = tmp_path / "checkpoints" / "step-00000004" / "rank-00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    heard: list[str] = []
    loop.pretrain(setup, who, say=heard.append)
    assert "step-00000004" in heard[0] and "passed over" in heard[0] and "resumed at step 2" in heard[1]
    assert losses_of(tmp_path) == losses_of(whole.run_dir)
    found = newest_committed(tmp_path / "checkpoints")
    assert found.manifest is not None and found.manifest.step == 6 and found.skipped == ()


def test_a_finished_run_is_not_trained_again(who: RankInfo, whole: PretrainSetup) -> None:
    steps: list[int] = []
    curve = loop.pretrain(whole, who, lambda info: steps.append(info.step))
    assert steps == [] and [point.loss for point in curve] == losses_of(whole.run_dir)


def test_the_exported_encoder_is_the_trained_one_and_names_its_pool(
    whole: PretrainSetup, small_index: ShardIndex, tmp_path: Path
) -> None:
    handover = export_encoder(Path(whole.run_dir), tmp_path)
    assert handover.step == 6 and handover.shard_index_sha256 == small_index.sha256
    assert {(s.case, s.voxel_sha256) for s in read_pool(tmp_path)} == {
        (v.case, v.voxel_sha256) for v in small_index.volumes
    }
    network = NNFormer(SMALL, 3)
    report = load_encoder(tmp_path, network)
    trained = load_autoencoder(Path(whole.run_dir))[0].encoder.state_dict()
    assert set(report.matched) == {f"encoder.{name}" for name in trained} and not report.unused
    assert all(torch.equal(network.encoder.state_dict()[name], tensor) for name, tensor in trained.items())
    torch.manual_seed(0)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(NNFormer(SMALL, 3).encoder.state_dict().values(), trained.values(), strict=True)
    )


def test_no_steps_give_the_random_weights_control(who: RankInfo, small_index: ShardIndex, tmp_path: Path) -> None:
    setup = small_setup(small_index, tmp_path / "run", steps=0)
    assert loop.pretrain(setup, who) == []
    assert export_encoder(tmp_path / "run", tmp_path / "handover").step == 0


def test_export_of_a_folder_without_a_whole_checkpoint_is_refused(whole: PretrainSetup, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no committed checkpoint"):
        export_encoder(tmp_path, tmp_path / "handover")
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(InputError, match="never committed"):
        export_encoder(tmp_path, tmp_path / "handover")


def test_visible_pretraining_runs_hands_its_encoder_over_and_draws_its_picture(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path
) -> None:
    visible = SMALL_MAE.model_copy(update={"mode": "visible", "sampling": "block", "ignore_flat": 0.0})
    setup = small_setup(small_index, tmp_path / "run", mae=visible)
    loop.pretrain(setup, who)
    assert all(loss > 0 for loss in losses_of(setup.run_dir))
    export_encoder(Path(setup.run_dir), tmp_path / "handover")
    network = NNFormer(SMALL, 3)
    assert not load_encoder(tmp_path / "handover", network).unused
    original, is_hidden, rebuilt = rebuilt_crop(Path(setup.run_dir), small_index, setup)
    assert (original[~is_hidden] == rebuilt[~is_hidden]).all() and (original[is_hidden] != rebuilt[is_hidden]).any()
