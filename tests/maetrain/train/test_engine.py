"""State leaves and enters DeepSpeed whole, and a broken-off run goes on as if nothing had happened.

One process with a group of its own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf, isfinite, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import CheckpointManifest, commit, newest_committed, read_committed, write_rank_file
from maetrain.checkpoint.fragments import assemble, to_named
from maetrain.checkpoint.handover import load_encoder, read_pool, run_of
from maetrain.models.config import NNFormerConfig
from maetrain.models.mae import MaskedAutoencoder
from maetrain.models.segmentation import NNFormer
from maetrain.train import engine as engine_module
from maetrain.train import pretrain as loop
from maetrain.train.config import PretrainConfig, PretrainSetup
from maetrain.train.curve import Curve
from maetrain.train.engine import MOMENTS, Engine
from maetrain.train.export import export_encoder, load_autoencoder
from maetrain.train.group import RankInfo
from maetrain.train.picture import rebuilt_crop

from ..small import SMALL, SMALL_MAE, load_full, noise, small_setup

pytestmark = pytest.mark.runs


# every parameter of the small network is below ZeRO 3's threshold and stays gathered; with "persistent": 0 none does
ENGINES: dict[str, dict] = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-1-bf16": {"zero_stage": 1, "precision": "bf16"},
    "zero-1-offload": {"zero_stage": 1, "offload": True},
    "zero-2": {"zero_stage": 2},
    "zero-2-bf16": {"zero_stage": 2, "precision": "bf16"},
    "zero-2-offload": {"zero_stage": 2, "offload": True},
    "zero-3": {"zero_stage": 3},
    "zero-3-gathers": {"zero_stage": 3, "persistent": 0},
    "zero-3-bf16": {"zero_stage": 3, "precision": "bf16"},
    "zero-3-offload": {"zero_stage": 3, "offload": True},
    "zero-3-offload-bf16": {"zero_stage": 3, "offload": True, "precision": "bf16"},
}
each_engine = pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)


def make_engine(
    who: RankInfo, seed: int, model: NNFormerConfig = SMALL, persistent: int = 100_000, **settings: object
) -> Engine:
    torch.manual_seed(seed)
    batch = {"global_batch": 2, "micro_batch": 2}
    config = PretrainConfig(crop_DHW=(16, 16, 16), **({"mae": SMALL_MAE} | batch | settings))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine_module, "PERSISTENT_ELEMENTS", persistent)
        MADE.append(Engine(MaskedAutoencoder(model, config.mae), config, who))
    return MADE[-1]


MADE: list[Engine] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def forward(engine: Engine, step: int) -> Tensor:
    torch.manual_seed(step)  # drop path
    return engine(noise(2, 1, 16, 16, 16, seed=step), torch.tensor([2 * step, 2 * step + 1])).loss


def train(engine: Engine, steps: Iterable[int], planted: dict[int, float] | None = None) -> list[float]:
    """The losses. `planted`: step -> value that one element of one gradient gets."""
    losses = []
    for step in steps:
        loss = forward(engine, step)
        with planted_gradient(engine, (planted or {}).get(step)):
            engine.backward(loss)
        engine.step(1e-3 / (step + 1))
        losses.append(float(loss.detach()))
    return losses


@contextmanager
def planted_gradient(engine: Engine, value: float | None) -> Iterator[None]:
    token_E = engine.wrapped.module.mask_token_E
    handle = token_E.register_hook(lambda g: g if value is None else g.index_fill(0, torch.tensor([3]), value))
    yield
    handle.remove()


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


def assert_same_state(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> None:
    for kind in ("weight", *MOMENTS):
        assert set(a[kind]) == set(b[kind])
        for name in a[kind]:
            assert torch.equal(a[kind][name], b[kind][name]), f"{kind} of {name}"
        assert any(tensor.any() for tensor in a[kind].values()), f"{kind} is empty"


@each_engine
def test_an_engine_filled_from_fragments_goes_on_to_the_last_bit(who: RankInfo, tmp_path: Path, settings: dict) -> None:
    first = make_engine(who, seed=1, **settings)
    before = train(first, range(2))
    state = through_files(first, tmp_path / "two-steps")
    want = train(first, range(2, 5))

    second = make_engine(who, seed=2, **settings)
    load_full(second, state, updates=2)
    assert train(second, range(2, 5)) == want
    assert before[0] != want[0] and all(loss == loss for loss in want)
    ends = [through_files(engine, tmp_path / f"end-{i}") for i, engine in enumerate((first, second))]
    assert set(ends[0]["weight"]) == set(first.shapes)
    assert_same_state(*ends)


def test_zero_stages_agree_on_the_first_losses(who: RankInfo) -> None:
    losses = {name: train(make_engine(who, seed=1, **settings), range(3)) for name, settings in ENGINES.items()}
    for name, found in losses.items():
        assert found == pytest.approx(losses["zero-0"], rel=1e-3 if name.endswith("bf16") else 1e-6), name


@each_engine
def test_an_engine_goes_back_in_the_middle_of_training(who: RankInfo, tmp_path: Path, settings: dict) -> None:
    engine = make_engine(who, seed=1, **settings)
    train(engine, range(2))
    state = through_files(engine, tmp_path / "two-steps")
    want = train(engine, range(2, 5))
    for planted in ({}, {6: nan}):
        train(engine, [5, 6], planted)
        assert engine.skipped is bool(planted)
        load_full(engine, state, updates=2)
        assert train(engine, range(2, 5)) == want and not engine.skipped


@pytest.mark.parametrize("persistent", [0, 100_000])
def test_zero_3_keeps_parameters_below_its_threshold_gathered(who: RankInfo, persistent: int) -> None:
    engine = make_engine(who, seed=1, zero_stage=3, persistent=persistent)
    train(engine, range(1))
    sizes = [parameter.numel() for parameter in engine.wrapped.module.parameters()]
    assert all(sizes) if persistent else not any(sizes)


UNCLIPPED: dict[str, dict] = {f"unclipped-{stage}": {"zero_stage": stage, "clip_norm": 0} for stage in range(4)}


@pytest.mark.parametrize("settings", (ENGINES | UNCLIPPED).values(), ids=ENGINES | UNCLIPPED)
def test_a_step_with_a_gradient_that_is_no_number_leaves_no_trace(
    who: RankInfo, tmp_path: Path, settings: dict
) -> None:
    hit, spared = (make_engine(who, seed=1, **({"clip_norm": 0.1} | settings)) for _ in range(2))
    losses, skipped = [], []
    for step in range(5):
        losses += train(hit, [step], planted={1: nan, 3: inf})
        skipped.append(hit.skipped)
        assert isfinite(hit.gradient_norm()) is not hit.skipped
    assert skipped == [False, True, False, True, False]
    assert losses[::2] == train(spared, [0, 2, 4])
    assert_same_state(*(through_files(engine, tmp_path / str(i)) for i, engine in enumerate((hit, spared))))


@pytest.mark.parametrize("name", [n for n in ENGINES if not n.endswith("bf16") and "gathers" not in n])
def test_a_micro_batch_counts_by_its_weight_and_spoils_the_whole_step(who: RankInfo, tmp_path: Path, name: str) -> None:
    two, one = (make_engine(who, seed=1, global_batch=batch, **ENGINES[name]) for batch in (4, 2))
    for step in range(2):
        for micro, weight in ((step, 2.0), (9, 0.0)):  # (2 x first + 0 x second) / 2: not a bit beside the first alone
            two.backward(forward(two, micro), weight)
            two.step(1e-3)
        one.backward(forward(one, step))
        one.step(1e-3)
    assert not two.skipped
    for value in (nan, None):  # in the first of two passes
        with planted_gradient(two, value):
            two.backward(forward(two, 7), 2.0)
        two.step(1e-3)
        two.backward(forward(two, 8), 0.0)
        two.step(1e-3)
        assert two.skipped is (value is not None)
    one.backward(forward(one, 7))
    one.step(1e-3)
    assert_same_state(*(through_files(engine, tmp_path / str(i)) for i, engine in enumerate((two, one))))


@pytest.mark.parametrize("mode", ["visible", "dense"])
def test_recomputed_activations_change_nothing_under_zero_3(who: RankInfo, mode: str) -> None:
    mae = SMALL_MAE.model_copy(update={"mode": mode})
    recomputing = SMALL.model_copy(update={"recompute": ("stem", 0, 1, 2)})
    want = train(make_engine(who, seed=1, zero_stage=0, mae=mae), range(3))
    for persistent in (0, 100_000):
        settings = {"zero_stage": 3, "persistent": persistent, "mae": mae}
        plain, recomputed = (make_engine(who, 1, model, **settings) for model in (SMALL, recomputing))
        assert train(recomputed, range(3)) == train(plain, range(3)) == pytest.approx(want, rel=1e-6)


def test_a_closed_engine_leaves_torch_as_it_was(who: RankInfo) -> None:
    linear = torch.nn.functional.linear
    engine = make_engine(who, seed=1, zero_stage=3)
    train(engine, range(1))
    parts = list(engine.wrapped.module.modules())[1:]
    assert any(part._forward_hooks for part in parts) and torch.nn.functional.linear is not linear
    engine.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    assert torch.nn.functional.linear is linear


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
        loop.pretrain(setup, who, crash_after(5))  # type: ignore[arg-type]
    steps: list[int] = []
    loop.pretrain(setup, who, lambda info: steps.append(info.step))
    assert steps[-1] == 6 and steps[0] in (1, 3, 5)  # behind the last checkpoint that was committed in time
    assert losses_of(tmp_path) == losses_of(whole.run_dir)
    ours, theirs = load_autoencoder(tmp_path)[0], load_autoencoder(Path(whole.run_dir))[0]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_a_crash_right_behind_a_commit_leaves_no_hole_in_the_curve(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    setup = small_setup(small_index, tmp_path, zero_stage=2)
    committed: list[int] = []

    def crash(step: int, _: object) -> None:
        committed.append(step)
        if step > 0:
            raise Crash

    with pytest.raises(Crash):
        loop.pretrain(setup, who, on_commit=crash)
    heard: list[str] = []
    loop.pretrain(setup, who, say=heard.append)
    assert len(heard) == 1 and heard[0].startswith(f"resumed at step {committed[-1]} from ")
    assert losses_of(tmp_path) == losses_of(whole.run_dir)


def test_a_damaged_checkpoint_is_passed_over_said_and_written_again(
    who: RankInfo, small_index: ShardIndex, tmp_path: Path, whole: PretrainSetup
) -> None:
    setup = small_setup(small_index, tmp_path, zero_stage=2)
    loop.pretrain(setup, who)
    (damaged,) = (tmp_path / "checkpoints").glob("step-00000006-*/rank-00000.safetensors")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    heard: list[str] = []
    loop.pretrain(setup, who, say=heard.append)
    assert "step-00000006" in heard[0] and "passed over" in heard[0] and "resumed at step 4" in heard[1]
    assert losses_of(tmp_path) == losses_of(whole.run_dir)
    found = newest_committed(tmp_path / "checkpoints")
    assert found.manifest is not None and found.manifest.step == 6 and found.skipped == ()


def test_a_finished_run_is_not_trained_again(who: RankInfo, whole: PretrainSetup) -> None:
    steps: list[int] = []
    before = losses_of(whole.run_dir)
    loop.pretrain(whole, who, lambda info: steps.append(info.step))
    assert steps == [] and losses_of(whole.run_dir) == before


def test_the_exported_encoder_is_the_trained_one_and_names_its_pool(
    whole: PretrainSetup, small_index: ShardIndex, tmp_path: Path
) -> None:
    handover = export_encoder(Path(whole.run_dir), tmp_path)
    assert run_of(tmp_path) == Path(whole.run_dir).name != tmp_path.parent.name
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


def test_the_encoder_of_a_checkpoint_bears_the_name_of_its_run(whole: PretrainSetup, tmp_path: Path) -> None:
    older = min((Path(whole.run_dir) / "checkpoints").iterdir())
    assert export_encoder(older, tmp_path).step < 6 and run_of(tmp_path) == Path(whole.run_dir).name


def test_no_steps_give_the_random_weights_control(who: RankInfo, small_index: ShardIndex, tmp_path: Path) -> None:
    setup = small_setup(small_index, tmp_path / "run", steps=0)
    loop.pretrain(setup, who)
    assert Curve.load(tmp_path / "run" / "curve.jsonl") == []
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
