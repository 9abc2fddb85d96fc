"""What the tests of the manifests share: where the schemas are, or why not."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kuberay_schemas() -> Path:
    """The definitions of KubeRay 1.7.0 beside the checkout, where they are; no part of the project."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "schemas" / "kuberay-v1.7.0"
    if not folder.is_dir():
        pytest.skip(f"needs KubeRay's definitions in ../shared/schemas beside the checkout; {folder} is not there")
    return folder
