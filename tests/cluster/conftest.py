"""Shards of the small archive, a split of its persons, and commands typed without Ray."""

from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.finetune.plan import split_of

from .typed import Run, forbid_ray, typed


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("shards"), BuildConfig(format="zarr"))


@pytest.fixture(scope="module")
def split(index: ShardIndex) -> Split:
    return split_of(index, 0.25, 2, 0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path) -> Run:
    forbid_ray(monkeypatch, "Ray was started before the mistake was said")
    monkeypatch.chdir(tmp_path)
    return typed(monkeypatch, capfd)
