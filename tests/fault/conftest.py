"""The scans that the faults strike over."""

from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex


@pytest.fixture(scope="session")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Fifteen scans."""
    folder = tmp_path_factory.mktemp("fault-shards")
    build(small_archive, folder, BuildConfig(format="zarr"))
    return ShardIndex.load(folder)
