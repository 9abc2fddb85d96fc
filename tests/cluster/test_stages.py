"""What is finished is kept, what changed is redone and said, and what was stopped goes on."""

import os
from pathlib import Path

from cluster.stages import DONE, Stage

INPUTS = {"steps": 100, "mae": {"ratio": 0.7}, "a": 1, "b": 1, "c": 1}


def finished(stage: Stage) -> Stage:
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.finish(1.25)
    return stage


def test_a_finished_stage_is_kept_for_equal_inputs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "mae", INPUTS)
    assert not stage.is_finished and stage.state() == "runs"
    finished(stage)
    again = Stage(tmp_path, "mae", dict(reversed(INPUTS.items())))
    assert again.is_finished and again.folder == stage.folder
    assert again.state() == f"kept ({stage.folder})"
    assert " on " in again.made_by()


def test_a_stage_that_was_stopped_goes_on_in_its_folder(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "mae", INPUTS)
    stage.folder.mkdir(parents=True)
    assert stage.state() == "runs", "an empty folder holds nothing to go on from"
    (stage.folder / "half.json").touch()
    assert stage.state() == "goes on" and not stage.is_finished


def test_a_changed_setting_is_named_and_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    old = finished(Stage(tmp_path, "mae", INPUTS))
    new = Stage(tmp_path, "mae", INPUTS | {"mae": {"ratio": 0.75}})
    assert new.state() == "redone, because of mae.ratio: 0.7 -> 0.75"
    assert new.folder != old.folder and not new.is_finished
    finished(new)
    assert old.is_finished, "going back to the old settings costs nothing"


def test_many_changes_are_named_in_short(tmp_path: Path) -> None:
    finished(Stage(tmp_path, "mae", INPUTS))
    new = Stage(tmp_path, "mae", {"steps": 1, "mae": {"ratio": 0.1}, "a": 2, "b": 2, "c": 2})
    assert new.state() == "redone, because of a: 1 -> 2; b: 1 -> 2; c: 1 -> 2; and 2 more"


def test_the_change_is_told_against_the_newest_finished_stage(tmp_path: Path) -> None:
    for steps, when in ((100, 2000), (300, 3000), (200, 1000)):
        stage = finished(Stage(tmp_path, "mae", INPUTS | {"steps": steps}))
        os.utime(stage.folder / DONE, (when, when))
    assert Stage(tmp_path, "mae", INPUTS | {"steps": 400}).state() == "redone, because of steps: 300 -> 400"


def test_a_stage_whose_name_begins_alike_is_another_one(tmp_path: Path) -> None:
    finished(Stage(tmp_path, "budget-001-mae-seed-1", INPUTS))
    assert Stage(tmp_path, "budget-001-mae", INPUTS | {"steps": 1}).state() == "runs"
    assert Stage(tmp_path, "budget-001-mae-seed-10", INPUTS | {"steps": 1}).state() == "runs"
