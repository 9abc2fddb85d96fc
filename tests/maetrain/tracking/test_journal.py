"""A journal holds each operation in order, whatever becomes of its writer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import InputError
from maetrain.tracking import journal
from maetrain.tracking.journal import JournalTracker, read_journal
from maetrain.tracking.tracker import Tracker


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_operation_is_a_line_in_order(tmp_path: Path) -> None:
    path = tmp_path / "job" / "journal.jsonl"
    tracker: Tracker = JournalTracker(path, "k2-mae-s0", "key")
    tracker.tags({"arm": "mae"})
    tracker.params({"finetune": {"steps": 5}})
    tracker.metrics({"loss": 0.1 + 0.2, "norm": float("nan")}, 3)
    tracker.dataset("Hippocampus", "ab", "shards/", "finetune")
    tracker.finish("FAILED")
    opened, tags, params, metrics, dataset, end = entries(path)
    assert (opened["op"], opened["name"], opened["work"], len(opened["id"])) == ("open", "k2-mae-s0", "key", 32)
    assert tags == {"op": "tags", "tags": {"arm": "mae"}}
    assert params == {"op": "params", "params": {"finetune.steps": 5}}
    assert metrics["metrics"]["loss"] == 0.1 + 0.2 and metrics["metrics"]["norm"] != metrics["metrics"]["norm"]
    assert metrics["step"] == 3 and opened["at_ms"] <= metrics["at_ms"] <= end["at_ms"]
    assert dataset == {"op": "dataset", "name": "Hippocampus", "digest": "ab", "source": "shards/"} | {
        "context": "finetune"
    }
    assert (end["op"], end["status"]) == ("finish", "FAILED")


def test_a_parameter_keeps_its_first_value_and_the_last_step_is_known(tmp_path: Path) -> None:
    tracker = JournalTracker(tmp_path / "j", "job", "key")
    tracker.params({"a": 1})
    tracker.params({"a": 2, "b": 3})
    assert [line["params"] for line in entries(tmp_path / "j")[1:]] == [{"a": 1}, {"b": 3}]
    assert tracker.last_step("loss") == 0
    for step in (4, 9, 7):
        tracker.metrics({"loss": 1.0}, step)
    assert tracker.last_step("loss") == 9 and tracker.last_step("dice") == 0


def test_files_inside_are_named_by_their_way_from_the_journal_and_others_are_copied(tmp_path: Path) -> None:
    inside, outside = tmp_path / "job" / "model" / "a.txt", tmp_path / "a.txt"
    inside.parent.mkdir(parents=True)
    inside.write_text("in")
    outside.write_text("out")
    tracker = JournalTracker(tmp_path / "job" / "journal.jsonl", "job", "key")
    tracker.file(inside)
    tracker.file(outside, "tables")
    outside.write_text("altered")
    tracker.file(outside)
    named = [(line["path"], line["folder"]) for line in entries(tracker.path)[1:]]
    assert named[0] == ("model/a.txt", None) and named[1][1] == "tables"
    moved = (tmp_path / "job").rename(tmp_path / "moved")
    assert [(moved / path).read_text() for path, _ in named] == ["in", "out", "altered"]


WRITER = """
import sys, time
from pathlib import Path
from maetrain.tracking.journal import JournalTracker
tracker = JournalTracker(Path(sys.argv[1]), "job", "key")
tracker.metrics({"loss": 1.0}, 1)
tracker._file.write('{"op": "metrics", "st')
tracker._file.flush()
print("written", flush=True)
time.sleep(100)
"""


def test_a_journal_cut_off_by_a_kill_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"written\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    part = read_journal(path)
    assert part is not None and [entry["op"] for entry in part.entries] == ["metrics"]
    assert path.read_bytes()[part.end :] == b'{"op": "metrics", "st'
    with path.open("a") as file:
        file.write('ep": 2, "metrics": {}}\n')
    rest = read_journal(path, part.end, part.opening)
    assert rest is not None and [entry["step"] for entry in rest.entries] == [2]


def test_a_journal_is_read_in_parts_that_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_BYTES", 300)
    tracker = JournalTracker(tmp_path / "j", "job", "key")
    tracker.tags({"long": "x" * 1000})  # one line longer than a part
    for step in range(20):
        tracker.metrics({"loss": 1.0}, step)
    opening, place, ops = None, 0, list[str]()
    parts = 0
    while (part := read_journal(tmp_path / "j", place, opening)) and part.entries:
        opening, place, parts = part.opening, part.end, parts + 1
        ops += [entry["op"] for entry in part.entries]
    assert ops == ["tags"] + ["metrics"] * 20 and parts > 4 and place == (tmp_path / "j").stat().st_size


def test_a_journal_begun_anew_replaces_the_earlier_and_is_known_as_another(tmp_path: Path) -> None:
    first = JournalTracker(tmp_path / "j", "job", "key")
    for step in range(9):
        first.metrics({"loss": 1.0}, step)
    before = read_journal(tmp_path / "j")
    assert before is not None
    second = JournalTracker(tmp_path / "j", "job", "key")
    second.metrics({"loss": 3.0}, 1)
    first.metrics({"loss": 2.0}, 2)  # a writer on a host that was cut off
    second.metrics({"loss": 4.0}, 2)
    after = read_journal(tmp_path / "j", before.end, before.opening)
    assert after is not None and after.opening.id != before.opening.id
    assert [entry["metrics"]["loss"] for entry in after.entries] == [3.0, 4.0]


def test_there_is_no_journal_before_its_first_line_is_whole(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") is None
    (tmp_path / "j").write_text('{"op": "open", "id"')
    assert read_journal(tmp_path / "j") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"op": "tags"}\n', "no journal of a run"),
        ("voxels\n", "is no entry"),
        ("[1]\n", "is no entry"),
        ('{"op": "open", "id": "i", "at_ms": 1, "name": "n", "work": "w"}\n\x00\x00\n', "is no entry"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(InputError, match=said):
        read_journal(tmp_path / "j")


def test_a_job_with_a_journal_loads_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(mlflow=None, ray=None); from pathlib import Path\n"
        "import cluster.journaled, maetrain.tracking.thinned\n"
        "from maetrain.tracking.system import SystemMetrics\n"
        "with cluster.journaled.journaled(Path(sys.argv[1]), 'job', 'key') as tracker, SystemMetrics(tracker): pass\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], check=True, timeout=120)
    opened, system, end = entries(tmp_path / "j")
    assert system["metrics"]["system/process_memory_megabytes"] > 10 and end["status"] == "FINISHED"
