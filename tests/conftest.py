"""What many tests share: one thread a process, one Ray session, small scans, and the run of a demo on them."""

import os
from collections.abc import Iterator
from pathlib import Path

# before torch is imported anywhere: two cores are shared by many processes
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from cluster.session import Resources, ray_session
from data_shards.synthetic import SyntheticConfig, write_archive


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For two processes of tests: a file is one's, and so is Ray, which comes first because it takes longest."""
    uses_ray = {item.path for item in items if "ray_resources" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in uses_ray)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in uses_ray else str(item.path)))


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
