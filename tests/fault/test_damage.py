"""Bytes that change or go in the newest checkpoint: each file of it is noticed, and the one before taken instead."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import MANIFEST, newest_committed, step_folders, step_of
from maetrain.train.config import PretrainSetup
from tests.maetrain.small import small_setup

from .faulty_train import Fault
from .ranks import Group, numbers

pytestmark = pytest.mark.runs

STEPS, EVERY = 12, 4
FILES = ("rank-00000.safetensors", "rank-00001.safetensors", "curve.jsonl", "events.jsonl", MANIFEST)
# so that there is an event to be damaged
NAN = Fault(at="forward", do="nan", rank=1, step=3)


@pytest.fixture(scope="module")
def whole(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> PretrainSetup:
    """Checkpoints of steps 4, 8 and 12 of two ranks."""
    setup = small_setup(
        index,
        tmp_path_factory.mktemp("whole") / "run",
        steps=STEPS,
        checkpoint_every=EVERY,
        keep_checkpoints=9,
        zero_stage=2,
    )
    with Group(setup, 2, [NAN]) as group:
        group.finish()
    newest = step_folders(Path(setup.run_dir) / "checkpoints")[0]
    assert step_of(newest) == STEPS and {path.name for path in newest.iterdir()} == set(FILES)
    assert all(path.stat().st_size for path in newest.iterdir())
    return setup


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def copied(whole: PretrainSetup, folder: Path) -> tuple[PretrainSetup, Path]:
    """The run again, and the folder of its newest checkpoint."""
    shutil.copytree(whole.run_dir, folder / "run")
    setup = whole.model_copy(update={"run_dir": str(folder / "run")})
    return setup, step_folders(folder / "run" / "checkpoints")[0]


@pytest.mark.parametrize("name", FILES)
def test_each_flipped_byte_and_each_cut_of_the_newest_checkpoint_is_noticed(
    name: str, whole: PretrainSetup, tmp_path: Path
) -> None:
    """Four hundred bytes of each file, and of the manifest each that says where the run stands."""
    _, newest = copied(whole, tmp_path)
    path, dice = newest / name, random.Random(name)
    content, size = path.read_bytes(), path.stat().st_size
    places = {0, 7, 8, size - 1, *dice.sample(range(size), min(size, 400))}
    if name == MANIFEST:
        # the first keys, and the run's state
        state = range(content.index(b'"state"'), content.index(b'"files"'))
        places |= {*range(content.index(b'"config"')), *state}
    passed: list[str] = []

    def look(what: str) -> None:
        found = newest_committed(newest.parent)
        # the one before in its place, for one reason, which names the file
        if (
            found.path is None
            or step_of(found.path) >= STEPS
            or len(found.skipped) != 1
            or name not in found.skipped[0]
        ):
            passed.append(what)
        path.write_bytes(content)

    for place in sorted(places):
        flip(path, place, bit := dice.choice((0, 1, 2)))
        look(f"bit {bit} of byte {place}, in {content[max(0, place - 20) : place + 20]!r}")
    for kept in (0, 1, size // 2, size - 1):
        cut(path, kept)
        look(f"{kept} of {size} bytes")
    assert not passed, f"{len(passed)} damages were not noticed, as these: {passed[:: max(1, len(passed) // 12)]}"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(FILES[1], lambda path: flip(path, path.stat().st_size // 2), id="a byte of a rank's file"),
        pytest.param(MANIFEST, lambda path: cut(path, path.stat().st_size // 2), id="half a manifest"),
    ],
)
def test_a_start_passes_over_the_damaged_checkpoint_says_so_and_ends_with_the_same_curve(
    name: str, damage: Callable[[Path], None], whole: PretrainSetup, tmp_path: Path
) -> None:
    setup, newest = copied(whole, tmp_path)
    damage(newest / name)
    with Group(setup, 2) as group:
        group.finish()
        said = [line for line in group.log().splitlines() if line.startswith("checkpoint passed over: ")]
        assert len(said) == 1 and name in said[0] and newest.name in said[0]
        assert f"resumed at step {STEPS - EVERY} " in group.log()
        assert group.steps == list(range(STEPS - EVERY + 1, STEPS + 1))
        assert "passed over" not in group.log(1)
    assert numbers(setup.run_dir) == numbers(whole.run_dir)
    found = newest_committed(newest.parent)
    assert found.manifest is not None and found.manifest.step == STEPS
