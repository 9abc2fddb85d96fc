"""Scores of other networks: which jobs are done anew, what a table keeps, what is refused. Nothing is trained."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import peers
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.scores import read_scores
from maetrain.finetune.prior import start_at

from ..data_shards.helpers import build_places

SETTINGS = (
    "sweep.budgets=[1,2]",
    "sweep.seeds=[0]",
    "split.monitor_subjects=1",
    "finetune.crop_DHW=[48,32,32]",
    "finetune.window_DHW=[32,32,33]",
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build_places(tmp_path_factory.mktemp("places"), [(8, 8, 8)] * 8)


@pytest.fixture
def trained_by(index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Words of a call -> what it trained. A network's Dice is the number of its steps in thousandths."""
    trained, crops = [], []

    def fit(network, groups, job, settings, *_):
        trained.append(f"{job.arm} {job.budget} at {job.peak(settings):g}")
        crops.append(settings.crop_DHW)
        return SimpleNamespace(network=settings.steps / 1000)

    def score_scans(dice, scans, labels, window_DHW, *_):
        assert window_DHW == crops[-1], "an instance norm would meet another share of padding than in training"
        return [CaseScore("case_0", "case_0", "part 1", dice, 0.0, dice)]

    monkeypatch.setattr(
        peers, "build", lambda _, channels, outputs: peers.Peer(torch.nn.Conv3d(channels, outputs, 1), 1)
    )
    monkeypatch.setattr(peers, "fit", fit)
    monkeypatch.setattr(peers, "score_scans", score_scans)
    places = ("--shards", str(index.root), "--data", str(index.root.parent / "archive"), "--out", str(tmp_path))

    def call(*words: str) -> list[str]:
        trained.clear()
        peers.main(["demo", *places, *SETTINGS, *words])
        return [*trained]

    return call


def table(out: Path) -> set[tuple[int, str, float]]:
    return {(row.budget, row.arm, row.dice) for row in read_scores(out / "scores.csv")}


@pytest.mark.parametrize(
    ("words", "is_another"),
    [
        ((), False),
        (("finetune.log_every=7",), False),  # of no concern to a score
        (("finetune.steps=7",), True),
        (("split.seed=1",), True),
        (("sweep.max_test_cases=1",), True),
        (("--learning-rate", "0.5"), True),
        (("--learning-rate", "0.003"), False),  # the recipe's
    ],
)
def test_a_job_is_done_once_for_what_its_scores_depend_on(
    trained_by: Callable[..., list[str]], words: tuple[str, ...], is_another: bool
) -> None:
    call = ("--budget", "1", "--only", "unet")
    assert trained_by(*call, "finetune.learning_rate=0.003") == ["unet 1 at 0.003"]
    assert bool(trained_by(*call, "finetune.learning_rate=0.003", *words)) == is_another


def test_a_networks_own_settings_make_it_another_job(
    trained_by: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(trained_by("--budget", "1")) == 2
    monkeypatch.setitem(peers.PEERS, "swinunetr", {"feature_size": 48})
    assert [line.split()[0] for line in trained_by("--budget", "1")] == ["swinunetr"]


def test_the_table_keeps_earlier_calls_at_the_same_settings_and_no_others(
    trained_by: Callable[..., list[str]], tmp_path: Path
) -> None:
    trained_by("--budget", "1", "--only", "unet", "finetune.steps=50")
    trained_by("--budget", "2", "--only", "unet", "finetune.steps=50")
    trained_by("--budget", "1", "--only", "swinunetr", "finetune.steps=50")
    assert table(tmp_path) == {(1, "unet", 0.05), (2, "unet", 0.05), (1, "swinunetr", 0.05)}
    trained_by("--budget", "1", "--only", "unet", "finetune.steps=70")
    assert table(tmp_path) == {(1, "unet", 0.07)}
    assert trained_by("--budget", "2", "--only", "unet", "finetune.steps=50") == [], "it was done before"
    assert len(table(tmp_path)) == 3


def test_the_rate_is_trained_at_and_said(
    trained_by: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained_by("--budget", "1", "--only", "unet", "--learning-rate", "0.25") == ["unet 1 at 0.25"]
    assert "budget-001-unet-seed-0, learning rate 0.25: Dice 0." in capsys.readouterr().out
    with pytest.raises(InputError, match="--learning-rate 0 is not a number above 0"):
        trained_by("--budget", "1", "--learning-rate", "0")


@pytest.mark.parametrize("script", ["peers", "nnunet"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "1", "--budget", "5"), r"--budget 5 is not among sweep.budgets \[1, 2\]"),
        (("--budget", "1", "finetune.validation_share=0.2"), "finetune.validation_share = 0.2: other networks train"),
    ],
)
def test_what_others_can_not_be_asked_for_is_refused(
    index: ShardIndex, tmp_path: Path, script: str, words: tuple[str, ...], said: str
) -> None:
    places = ("--shards", str(index.root), "--data", str(index.root.parent / "archive"), "--out", str(tmp_path))
    own = ("--nnunet", str(tmp_path)) if script == "nnunet" else ()
    with pytest.raises(InputError, match=said) as refused:
        import_module(f"benchmarks.{script}").main(["demo", *places, *own, *SETTINGS, *words])
    assert "\n" not in str(refused.value) and not [*tmp_path.iterdir()]


def test_swinunetr_is_refused_what_leaves_it_one_voxel(trained_by: Callable[..., list[str]]) -> None:
    small = "finetune.crop_DHW=[32,20,32]"
    with pytest.raises(InputError, match=r"crop_DHW = \(32, 20, 32\): SwinUNETR needs an axis above 32"):
        trained_by("--budget", "1", small)
    assert len(trained_by("--budget", "1", "--only", "unet", small)) == 1


def test_swinunetr_does_one_voxel_more_and_not_one_less() -> None:
    network = peers.build("swinunetr", 1, 2)
    with torch.no_grad():
        assert network(torch.randn(1, 1, 33, 32, 32))[0].shape == (1, 2, 33, 32, 32)
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            network(torch.randn(1, 1, 32, 32, 32))


def test_a_volume_is_filled_up_with_the_lowest_of_its_own_channel_whoever_is_beside_it() -> None:
    network = peers.build("unet", 2, 2)
    network.network = seen = Recorder()
    volumes = torch.rand(2, 2, 20, 16, 16) + torch.tensor([[0.0, -5.0], [7.0, 3.0]])[:, :, None, None, None]
    assert network(volumes)[0].allclose(volumes), "what was filled in is cut off"
    padded = seen.given
    assert padded.shape == (2, 2, 32, 16, 16) and padded[:, :, :20].allclose(volumes)
    lowest = volumes.amin((2, 3, 4), keepdim=True)
    assert padded[:, :, 20:].allclose(lowest.expand(-1, -1, 12, 16, 16))


class Recorder(torch.nn.Module):
    def forward(self, volume_BCDHW: torch.Tensor) -> torch.Tensor:
        self.given = volume_BCDHW
        return volume_BCDHW


@pytest.mark.parametrize("name", [*peers.PEERS])
def test_what_the_heads_start_at_reaches_each_voxel_of_a_peers_logits(name: str) -> None:
    network = peers.build(name, 1, 3).eval()
    volume = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        (before,) = network(volume)
        network.head.bias.zero_()
        (unbiased,) = network(volume)
        start_at([network.head], torch.tensor([0.9, 0.08, 0.02]), False)
        (after,) = network(volume)
    assert before.shape == after.shape == (1, 3, 64, 32, 32)
    expected = torch.tensor([0.9, 0.08, 0.02]).log()[None, :, None, None, None].expand_as(after)
    torch.testing.assert_close(after - unbiased, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_on", [True, False])
def test_peers_start_as_our_own_networks_do(
    trained_by: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, is_on: bool
) -> None:
    started = list[torch.Tensor]()
    monkeypatch.setattr(peers, "start_at", lambda heads, shares, are_regions: started.append(shares))
    trained_by("--budget", "2", "--only", "unet", f"finetune.class_prior={str(is_on).lower()}")
    assert len(started) == is_on
    for shares in started:
        assert float(shares.sum()) == pytest.approx(1) and float(shares.min()) > 0
