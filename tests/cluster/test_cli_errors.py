"""A user's mistake is one line on stderr that names what is wrong and the way out, and exit code 2. Never a traceback.

Ray is not started here: what can be known to be wrong is said before.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import maetrain.train.engine  # noqa: F401 (DeepSpeed's first import lets the linker talk; here nobody counts lines)
from cluster import cli
from cluster.arguments import recipe_and_overrides
from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from tests.cluster.typed import Run, mistake
from tests.data_shards.helpers import one_labelled_scan


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["config", "show", "smal"], ["'smal'", "did you mean 'small'"]),
        (["config", "show", "mine.yaml"], ["mine.yaml", "no such file"]),
        (["config", "show", "demo", "pretrain.setps=3"], ["pretrain.setps", "did you mean 'steps'"]),
        (["config", "show", "demo", "pretrain.steps=abc"], ["pretrain.steps", "'abc'", "integer"]),
        (["demo", "--data", "nowhere"], ["nowhere", "is not a folder", "give"]),
        (["demo", "pretrain.stepz=1"], ["pretrain.stepz", "did you mean"]),
        (["demo", "model.num_heads=[3,2,4]"], ["num_heads[0] = 3", "use"]),
        (["shards", "build", "nowhere", "shards"], ["nowhere", "is not a folder", "give"]),
        (["shards", "build", "nowhere", "shards", "shards.volumes_per_shard=0"], ["shards.volumes_per_shard", "0"]),
        (["shards", "verify", "nowhere"], ["nowhere", "build the shards first"]),
        (["shards", "show", "nowhere"], ["nowhere", "build the shards first"]),
        (["pretrain", "demo", "--shards", "nowhere", "--out", "run"], ["nowhere", "build the shards first"]),
        (["sweep", "demo", "--shards", "nowhere", "--data", "a", "--out", "b"], ["nowhere", "build the shards"]),
        (["evaluate", "nowhere", "archive", "--out", "scores.csv"], ["nowhere", "no model there"]),
        (["predict", "nowhere", "scan.nii.gz", "out.nii.gz"], ["nowhere", "no model there"]),
        (["export", "nowhere", "encoder"], ["nowhere", "no committed checkpoint"]),
        (["report", "nowhere"], ["nowhere", "no scores.csv there", "give a sweep's folder"]),
    ],
    ids=lambda value: " ".join(value) if len(value) < 9 and "nowhere" not in value[0] else None,
)
def test_what_is_not_there_or_not_known_is_named(run: Run, words: list[str], parts: list[str]) -> None:
    mistake(run(*words), *parts)


def test_an_empty_archive_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mistake(run("demo", "--data", "empty"), tmp_path / "empty", "holds no NIfTI scan")
    mistake(run("shards", "build", "empty", "out"), tmp_path / "empty", "holds no NIfTI scan")


def test_a_budget_larger_than_the_persons_there_are_is_named(run: Run, index: ShardIndex, small_archive: Path) -> None:
    words = ("sweep", "demo", "sweep.budgets=[1, 99]", "sweep.arms=[scratch]")
    outcome = run(*words, "--shards", index.root, "--data", small_archive, "--out", "sweep")
    mistake(outcome, "budget 99", "training persons", "sweep.budgets")


def test_the_arm_mae_without_an_encoder_is_named(run: Run, index: ShardIndex, small_archive: Path) -> None:
    words = ("sweep", "demo", "--shards", index.root, "--data", small_archive, "--out", "sweep")
    mistake(run(*words), "--handover", "sweep.arms=[scratch]")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sweep.arms=[scratch,long]"], ["the arm `long` needs an encoder", "--handover long=FOLDER"]),
        (["--handover", "other=.", "sweep.arms=[scratch]"], ["no arm of that name", "add other to it"]),
        (["--handover", "scratch=.", "sweep.arms=[scratch]"], ["scratch starts from random weights"]),
        (["--elsewhere", ".", "sweep.arms=[scratch]"], ["--elsewhere .: write NAME=FOLDER"]),
        (["sweep.arms=[scratch,Mae]"], ["sweep.arms.1", "'Mae'"]),
        (["sweep.arms=[scratch,scratch]"], ["arms: scratch stands there twice"]),
        (["sweep.trial_seeds=4"], ["trial_seeds = 4, and seeds are 2: give more seeds"]),
        (["sweep.arms=[scratch]", "sweep.ranks_per_job=3"], ["finetune.batch = 2", "3 ranks", "make it a multiple"]),
        (["sweep.arms=[scratch]", "sweep.learning_rates=[1e-3]", "sweep.trial_budgets=[3]"], ["trial_budgets: 3 is"]),
        (["sweep.arms=[scratch]", "finetune.keep=best"], ["set validation_share"]),
        (["sweep.seeds=[0]", "--handover", ".", "--handover", "mae=.."], ["mae=...: 2 encoders for 1 of sweep.seeds"]),
    ],
)
def test_an_order_that_does_not_add_up_is_refused(
    run: Run, index: ShardIndex, small_archive: Path, words: list[str], parts: list[str]
) -> None:
    fixed = ("--shards", index.root, "--data", small_archive, "--out", "sweep")
    mistake(run("sweep", "demo", *fixed, *words), *parts)


def test_a_sweep_goes_on_only_where_one_was_ordered_and_as_it_was(run: Run, tmp_path: Path) -> None:
    mistake(run("sweep", "--resume", "--out", tmp_path), "no sweep to go on with")
    mistake(run("sweep", "demo", "--resume", "--out", tmp_path), "--resume takes the order from OUT")
    mistake(run("sweep", "demo", "--out", tmp_path), "--shards and --data, or --resume")


@pytest.mark.parametrize("verb", ["sweep", "pretrain"])
@pytest.mark.parametrize(
    "uri", ["htp://me:secret@mlflow:5000", "http://127.0.0.1:9", "sqlite:////proc/no/x.db", "runs"]
)
def test_a_wrong_tracking_uri_is_said_before_anything_starts_and_not_kept(
    run: Run,
    index: ShardIndex,
    small_archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    verb: str,
) -> None:
    monkeypatch.setattr("maetrain.tracking.mlflow_tracker.FIRST_S", 0.0)
    more = ("sweep.arms=[scratch]", "--data", small_archive) if verb == "sweep" else ()
    outcome = run(verb, "demo", *more, "--shards", index.root, "--out", "out", "--tracking-uri", uri)
    mistake(outcome, f"--tracking-uri {uri.replace('secret', '***')}: no MLflow store to work with", "give another")
    assert not (tmp_path / "out" / "sweep.json").exists() and "secret" not in outcome[2]


def test_an_archive_from_elsewhere_must_be_of_the_same_classes_and_of_others(
    run: Run, index: ShardIndex, small_archive: Path, tmp_path: Path
) -> None:
    words = ("sweep", "demo", "sweep.arms=[scratch]", "--shards", index.root, "--data", small_archive, "--out", "sweep")
    outcome = run(*words, "--elsewhere", f"there={small_archive}")
    mistake(outcome, "--elsewhere there: person", "is among those that train or pretrain")
    one_labelled_scan(tmp_path / "liver", 1, ["background", "liver"])
    mistake(run(*words, "--elsewhere", f"there={tmp_path / 'liver'}"), "its classes are ['background', 'liver']")


def test_a_garbled_index_is_named(run: Run, index: ShardIndex, tmp_path: Path) -> None:
    text = (index.root / "index.json").read_text()
    (rows,) = index.root.glob("volumes-*.parquet")
    shutil.copy(rows, tmp_path)
    (tmp_path / "index.json").write_text(text.replace("background", "backdrop"))
    mistake(run("shards", "show", tmp_path), tmp_path / "index.json", "build the shards again")
    (tmp_path / "index.json").write_text(text[: len(text) // 2])
    mistake(run("shards", "verify", tmp_path), tmp_path / "index.json", "build the shards again")


def test_a_damaged_shard_is_named_with_exit_code_1(run: Run, small_archive: Path, tmp_path: Path) -> None:
    index = build(small_archive, tmp_path / "shards", BuildConfig(format="webdataset"))
    path = index.root / index.shards[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, stdout, stderr = run("shards", "verify", "shards")
    assert (code, stderr) == (1, "") and path.name in stdout and stdout.startswith("damaged: ")


@pytest.mark.parametrize(
    "words", [["demoo"], ["predict"], ["shards", "build", "a", "b", "--format", "tar"], ["evaluate", "--nothing"]]
)
def test_a_misused_command_is_one_line_that_points_to_the_help(run: Run, words: list[str]) -> None:
    mistake(run(*words), "--help")


def test_an_interrupt_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "main", interrupted)
    code, _, stderr = run("demo")
    assert code == 130 and stderr.splitlines() == ["maetrain: stopped; the same command goes on from here"]


def test_a_full_disk_is_one_line_and_our_own_mistakes_keep_their_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def main(**_: object) -> None:
            raise error

        return main

    monkeypatch.setattr(cli.cli, "main", failing(OSError(errno.ENOSPC, "No space left on device", "/out/x")))
    mistake(run("demo"), "/out/x", "No space left on device")
    for number in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
        monkeypatch.setattr(cli.cli, "main", failing(OSError(number, os.strerror(number), "/out/x")))
        mistake(run("demo"), "/out/x", "another place")
    for error in (KeyError("ours"), OSError(errno.ENOENT, "ours"), ValueError("ours")):
        monkeypatch.setattr(cli.cli, "main", failing(error))
        with pytest.raises(type(error), match="ours"):
            run("demo")


@pytest.mark.parametrize(
    ("recipe", "overrides", "want"),
    [
        (None, (), ("demo", ())),
        ("small", ("a=1",), ("small", ("a=1",))),
        ("a=1", ("b=2",), ("demo", ("a=1", "b=2"))),
    ],
)
def test_the_recipe_may_be_left_out_before_overrides(recipe: str | None, overrides: tuple, want: tuple) -> None:
    assert recipe_and_overrides(recipe, overrides, "demo") == want


def test_every_command_is_a_click_command_with_a_short_help() -> None:
    def walk(group: click.Group) -> list[click.Command]:
        return [c for one in group.commands.values() for c in (walk(one) if isinstance(one, click.Group) else [one])]

    assert all(command.get_short_help_str() for command in walk(cli.cli))


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "--resume", "--out", "s3://b/sweep"),
        ("demo", "--out", "s3://b/out"),
        ("report", "s3://b/sweep"),
        ("export", "s3://b/run", "encoder"),
        ("evaluate", "model", "archive", "--out", "s3://b/scores.csv"),
    ],
)
def test_a_bucket_is_refused_where_none_can_be(run: Run, words: tuple[str, ...]) -> None:
    mistake(run(*words), "s3://b/", "a bucket can't be given here")
    assert not Path("s3:").exists()
