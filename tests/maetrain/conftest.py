"""Shards of the small archive, built once in this process."""

from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex


@pytest.fixture(scope="session")
def small_index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("small-shards"), BuildConfig(format="zarr"))
