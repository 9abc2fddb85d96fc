"""The evidence in docs/results/: its tables follow from its scores."""

from pathlib import Path

import pytest

from maetrain.report.material import read_material
from maetrain.report.page import write_report
from maetrain.report.results import analyse

KEPT = sorted(path.parent for path in Path(__file__).parents[3].glob("docs/results/*/scores.csv"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_tables_follow_from_the_scores(folder: Path, tmp_path: Path) -> None:
    material = read_material(folder)
    write_report(material.rows, material.inputs, analyse(material.rows, material.inputs), folder, tmp_path)
    for name in ("comparisons.csv", "labels_saved.csv", "convergence.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_there_is_evidence() -> None:
    assert len(KEPT) >= 3
