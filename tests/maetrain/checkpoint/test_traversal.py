"""A manifest names files of its own folder only, and a copy from a bucket goes where we say."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maetrain.checkpoint.commit import MANIFEST, newest_committed, read_committed

from .builders import write_checkpoint


def forge(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes a manifest and its own hash with it, as somebody with bad intent would."""
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    text = json.dumps(content | {"own_sha256": ""}, indent=1)
    before, key, after = text.rpartition('"own_sha256": "')
    (folder / MANIFEST).write_text(before + key + hashlib.sha256(text.encode()).hexdigest() + after)


def test_a_manifest_that_is_forged_to_say_the_same_is_taken(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1)
    whole = read_committed(folder)
    forge(folder, lambda content: content["state"].update(forged=True))
    assert read_committed(folder).files == whole.files and read_committed(folder).state == {"forged": True}


@pytest.mark.parametrize("name", ["../rank-00001.safetensors", "absolute", "..", ".", "", "a/../../x", "..\\x"])
def test_a_file_outside_of_the_checkpoint_is_refused_though_its_hash_fits(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1)
    outside = (folder / "rank-00001.safetensors").rename(folder.parent / "rank-00001.safetensors")
    name = str(outside) if name == "absolute" else name
    forge(folder, lambda content: content["files"][1].update(name=name))
    with pytest.raises(ValueError, match=r"not a manifest: files\.1\.name: .*no plain name") as caught:
        read_committed(folder)
    assert "\n" not in str(caught.value)
    assert newest_committed(tmp_path / "checkpoints").path is None


@pytest.mark.parametrize("sha256", ["../../x", "/tmp/x", "0" * 63, "0" * 64 + "\n", ""])
def test_a_hash_that_is_none_names_no_copy(tmp_path: Path, sha256: str) -> None:
    folder = write_checkpoint(tmp_path, 1)
    forge(folder, lambda content: content["files"][0].update(sha256=sha256))
    with pytest.raises(ValueError, match=r"not a manifest: files\.0\.sha256"):
        read_committed(folder)
