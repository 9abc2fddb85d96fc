"""Settings as dotted names, and a tracker that keeps nothing."""

from pathlib import Path

from maetrain.tracking.tracker import NullTracker, Tracker, flatten


def test_nested_settings_become_dotted_names() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": (1, 2)}, "e": None}}) == {"a": 1, "b.c.d": (1, 2), "b.e": None}


def test_the_null_tracker_takes_everything_a_tracker_takes(tmp_path: Path) -> None:
    tracker: Tracker = NullTracker()
    tracker.tags({"a": "b"})
    tracker.params({"a": 1})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.file(tmp_path / "nowhere")
    tracker.dataset("a", "b", "c", "d")
    tracker.finish()
