"""The scans that the faults strike over."""

from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex

from .ranks import STEPS, Group, numbers, short_setup


@pytest.fixture(scope="session")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Fifteen scans."""
    folder = tmp_path_factory.mktemp("fault-shards")
    build(small_archive, folder, BuildConfig(format="zarr"))
    return ShardIndex.load(folder)


@pytest.fixture(scope="session")
def whole(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The numbers of `short_setup` on two ranks that nothing happened to."""
    setup = short_setup(index, tmp_path_factory.mktemp("whole") / "run")
    with Group(setup, 2) as group:
        group.finish()
    whole = numbers(setup.run_dir)
    assert len(set(whole)) == STEPS, "numbers that never change would agree, too"
    return whole
