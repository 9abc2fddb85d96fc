"""The report comes first, whatever MLflow does; and the budget curve stands there once, however often it is logged."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from cluster import comparison as module
from cluster.comparison import compare_arms, log_parent
from maetrain.recipes.load import load_recipe
from maetrain.report.results import analyse
from maetrain.tracking.mlflow_tracker import MlflowTracker, open_experiment
from maetrain.tracking.patience import StoreAway
from tests.maetrain.report.builders import make_inputs, make_rows

CONFIG = load_recipe("demo", ())


def test_a_rerun_logs_only_the_points_that_are_new(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = open_experiment(uri, "tests", tmp_path / "artifacts")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("page")
    first, changed = (
        make_rows(budgets=(1, 4)),
        make_rows(budgets=(1, 4), effect=lambda budget, arm: 0.1 * (arm == "mae")),
    )
    run_id, wanted = None, list[tuple[int, float]]()
    for rows in (first, first, changed, changed):
        parent = MlflowTracker(uri, experiment, "sweep", run_id)
        run_id = parent.run_id
        numbers = analyse(rows, make_inputs())
        log_parent(parent, CONFIG, numbers, tmp_path / "report")
        parent.finish()
        wanted += [(p.budget, p.mean) for p in numbers.points if p.arm == "mae" and (p.budget, p.mean) not in wanted]
    client = MlflowClient(uri)
    found = [(p.step, p.value) for p in client.get_metric_history(run_id, "test_dice_mae")]
    assert sorted(found) == sorted(wanted) and len(found) == 4
    assert len(client.get_metric_history(run_id, "test_dice_scratch")) == 2
    assert parent.points("test_dice_mae") == dict(wanted[2:])
    assert [a.path for a in client.list_artifacts(run_id, "report")] == ["report/index.html"]


@pytest.mark.parametrize("fails", ["log_parent", "crown"])
def test_a_store_that_is_away_costs_a_sweep_nothing_but_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    """The stages before are made up."""
    rows, page = make_rows(), tmp_path / "report" / "index.html"
    stage = SimpleNamespace(folder=tmp_path, made_by=lambda: "c on h")
    result = SimpleNamespace(seconds=1.0)
    shown: list[str] = []

    def away(*_: object) -> None:
        shown.append(capsys.readouterr().out)
        raise StoreAway("the MLflow store does not answer (x)")

    for name, answer in {
        "run_sweep": ({"job": stage}, {}),
        "results_of": [result],
        "report_inputs": make_inputs(),
        "read_scores": rows,
        "write_report": page,
        "log_parent": None,
        "crown": None,
    }.items():
        monkeypatch.setattr(module, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(module, fails, away)
    comparison = SimpleNamespace(
        config=CONFIG, arms={"scratch": []}, out=tmp_path, elsewhere={}, index=SimpleNamespace(name="x")
    )
    assert compare_arms(comparison, None, None, None, {}) == page  # type: ignore[arg-type]
    before, after = " ".join(shown[0].split()), " ".join(capsys.readouterr().out.split())
    assert f"report: {page}" in before and "Dice on 24 test persons" in before
    assert analyse(rows, make_inputs()).headline in before
    assert after == "the MLflow store does not answer (x)"
