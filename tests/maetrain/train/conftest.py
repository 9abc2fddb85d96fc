"""One process group for all tests of the loop and the engine: DeepSpeed keeps the first one it is given."""

from collections.abc import Iterator

import pytest

from maetrain.train.group import RankInfo, joined_group


@pytest.fixture(scope="session")
def who() -> Iterator[RankInfo]:
    with joined_group() as info:
        yield info
