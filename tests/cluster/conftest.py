"""Shards of the small archive, a split of its persons, a model, and commands typed without Ray."""

from pathlib import Path

import pytest
import torch

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.preprocess import PreprocessConfig
from data_shards.splits import Split
from maetrain.evaluate.model_folder import ModelContract, save_model
from maetrain.finetune.plan import split_of
from maetrain.models.segmentation import NNFormer

from ..maetrain.small import SMALL
from .typed import Run, forbid_ray, typed


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("shards"), BuildConfig(format="zarr"))


@pytest.fixture(scope="module")
def split(index: ShardIndex) -> Split:
    return split_of(index, 0.25, 2, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's model with random weights, large enough in its head that its classes differ clearly."""
    folder = tmp_path_factory.mktemp("job") / "model"
    torch.manual_seed(0)
    contract = ModelContract(
        architecture=SMALL,
        class_names=("background", "organ_1", "organ_2"),
        channel_names=("MRI",),
        window_DHW=(16, 16, 16),
        preprocess=PreprocessConfig(intensity="zscore"),
    )
    network = NNFormer(SMALL, 3)
    network.heads[0].conv.weight.data.mul_(20)
    save_model(folder, network, contract)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path) -> Run:
    forbid_ray(monkeypatch, "Ray was started before the mistake was said")
    monkeypatch.chdir(tmp_path)
    return typed(monkeypatch, capfd)
