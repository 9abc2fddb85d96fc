"""A journal can have files of its own folder uploaded, under names inside of its run, and no others."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from data_shards.errors import InputError
from maetrain.tracking.deliver import Delivery
from maetrain.tracking.journal import JournalTracker
from maetrain.tracking.work import WORK_TAG, Tracking, work_in

SECRET = "nobody's business"


@pytest.mark.parametrize(
    ("name", "folder", "remark"),
    [
        ("../secret.txt", None, "a path out"),
        ("tables/../../secret.txt", "tables", "a path out by a detour"),
        ("ABSOLUTE", None, "a path from the root"),
        ("link.txt", None, "a link that leads out"),
        ("scores.csv", "../../../outside", "a place outside of the run"),
        ("scores.csv", "/outside", "a place from the root"),
        ("scores.csv", "..\\outside", "the same on another system"),
    ],
)
def test_a_journal_that_names_what_lies_outside_is_refused(
    tracking: Tracking, tmp_path: Path, name: str, folder: str | None, remark: str
) -> None:
    home = tmp_path / "job"
    journal = JournalTracker(home / "journal.jsonl", "k2-mae-s0", "work")
    (home / "tables").mkdir()
    (home / "scores.csv").write_text("dice\n0.5\n")
    (tmp_path / "secret.txt").write_text(SECRET)
    (home / "link.txt").symlink_to(tmp_path / "secret.txt")
    name = str(tmp_path / "secret.txt") if name == "ABSOLUTE" else name
    with journal.path.open("a") as file:
        file.write(json.dumps({"op": "file", "path": name, "folder": folder}) + "\n")
    with pytest.raises(InputError, match="outside its own folder or the run's; remove the journal") as caught:
        Delivery(journal.path, tracking, print).forward()
    assert "\n" not in str(caught.value), remark
    query = f"tags.`{WORK_TAG}` = '{work_in(home, 'work')}'"
    (run,) = MlflowClient(tracking.uri).search_runs([tracking.experiment_id], query)
    assert not MlflowClient(tracking.uri).list_artifacts(run.info.run_id)
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(home)]
    assert [path.name for path in copies] == ["secret.txt"]


def test_a_file_that_lies_elsewhere_when_it_is_logged_is_copied_and_arrives(tracking: Tracking, tmp_path: Path) -> None:
    """What the rule must not forbid: the tracker's own way with files from outside."""
    (tmp_path / "report.html").write_text("page")
    journal = JournalTracker(tmp_path / "job" / "journal.jsonl", "k2-mae-s0", "work")
    journal.file(tmp_path / "report.html", "report")
    journal.finish()
    delivery = Delivery(journal.path, tracking, print)
    assert delivery.forward() and delivery.run_id
    found = MlflowClient(tracking.uri).list_artifacts(delivery.run_id, "report")
    assert [artifact.path for artifact in found] == ["report/report.html"]
