"""What many tests share: one thread a process, one Ray session, small scans, and the run of a demo on them."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# before torch is imported anywhere: two cores are shared by many processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# of tests that look for a run's metrics; Ray's own interval is longer than such a run
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cluster.session import Resources, ray_session
from data_shards.synthetic import SyntheticConfig, write_archive


@cache
def uses_ray(path: Path) -> bool:
    return "ray_resources" in path.read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray comes first, because it takes longest."""
    items.sort(key=lambda item: not uses_ray(item.path))


class WholeFiles(LoadScopeScheduling):
    """For several processes of tests: a file is one's, with its fixtures, and all of Ray is one's.

    xdist's own groups don't work with pytest 9.2, which takes no suffix on a test's name.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if uses_ray(self.config.rootpath / file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    return WholeFiles(config, log)


@pytest.fixture(scope="session")
def ray_resources() -> Iterator[Resources]:
    """The one Ray session of a test run; it is stopped, with all its processes, at the end."""
    with ray_session() as resources:
        yield resources


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve persons, fifteen scans of 24 x 28 x 20 voxels, two organs."""
    root = tmp_path_factory.mktemp("archive")
    write_archive(root, SyntheticConfig(num_subjects=12, shape_XYZ=(24, 28, 20), num_classes=3))
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real scans beside the checkout, where there are some; no part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real scans of ../shared/data beside the checkout; {folder} is not there")
    return folder
