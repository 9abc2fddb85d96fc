"""A job's command through a real shell, its name, and what must not stand in it."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.entrypoint import (
    SENT_BY,
    check_sender,
    check_words,
    next_id,
    out_of,
    passed_on,
    run_name,
    same_place,
    shell_command,
)
from data_shards.errors import InputError

SHOW = ("python3", "-c", "import os, sys; print(sys.argv[1:], os.environ.get('A_SECRET'))")


def run(command: str, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"], **env})
    return done.returncode, done.stdout, done.stderr


def test_words_come_through_the_shell_as_they_are() -> None:
    words = ["a b", "x=[1,2]", "$HOME", "it's", "*", ""]
    assert run(shell_command([*SHOW, *words])) == (0, f"{words} None\n", "")


def test_a_plain_command_stays_readable() -> None:
    assert shell_command(["maetrain", "pretrain", "small"]) == "maetrain pretrain small"


def test_a_variable_of_the_cluster_is_named_and_must_be_there() -> None:
    command = shell_command(SHOW, cluster_env=["A_SECRET"])
    assert run(command, A_SECRET="hush") == (0, "[] hush\n", "")
    for env in ({}, {"A_SECRET": ""}):
        code, stdout, stderr = run(command, **env)
        assert code != 0 and stdout == "" and "A_SECRET" in stderr and "environment of the head" in stderr


def test_a_file_of_the_cluster_gives_variables_to_the_driver(tmp_path: Path) -> None:
    file = tmp_path / "my secrets.env"
    word = 'it\'s $HOME & `date`; "all" of it #1 '
    file.write_text(f"# a remark\n\nOTHER=1\nA_SECRET={word}")
    command = shell_command(SHOW, cluster_env=["A_SECRET", "OTHER"], env_file=str(file))
    assert run(command) == (0, f"[] {word}\n", "") and "all" not in command
    file.write_text("OTHER=1\nhush & hush\n")
    assert run(command) == (2, "", f"maetrain: --env-file {file}: a line is no NAME=VALUE\n")
    file.unlink()
    code, stdout, stderr = run(command)
    assert (code, stdout) == (2, "") and "my secrets.env cannot be read" in stderr


def test_the_value_of_a_variable_is_refused_where_its_name_is_asked_for() -> None:
    with pytest.raises(InputError, match="A_SECRET: give the name of a variable") as refused:
        shell_command(SHOW, cluster_env=["A_SECRET=hush"])
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "word",
    ["http://me:hush@mlflow:5000", "postgresql://mlflow:hush@db/mlflow", "--tracking-uri=https://hush@mlflow"],
)
def test_a_password_in_the_command_is_refused_and_not_repeated(word: str) -> None:
    with pytest.raises(InputError, match="--cluster-env") as refused:
        check_words(["pretrain", "--tracking-uri", word])
    assert "hush" not in str(refused.value)


def test_a_command_without_a_password_is_let_through() -> None:
    check_words(["--tracking-uri", "http://mlflow:5000", "--shards", "s3://bucket/a@b", "sqlite:////shared/mlflow.db"])


@pytest.mark.parametrize(
    "name",
    [
        *("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MAETRAIN_SALT", "API_KEY"),
        *("APIKEY", "DB_PWD", "AZURE_SAS", "PGPASS", "SMTP_PASS"),
    ],
)
def test_a_secret_of_this_machine_is_not_passed_on(name: str) -> None:
    with pytest.raises(InputError, match=f"--cluster-env {name}") as refused:
        passed_on([name], {name: "hush"})
    assert "hush" not in str(refused.value)


def test_a_password_inside_a_value_is_not_passed_on() -> None:
    with pytest.raises(InputError, match="looks like a secret"):
        passed_on(["MLFLOW_TRACKING_URI"], {"MLFLOW_TRACKING_URI": "http://me:hush@mlflow"})


def test_plain_variables_are_passed_on_and_missing_ones_told() -> None:
    here = {"NCCL_SOCKET_IFNAME": "eth1", "KEYBOARD": "de", "PASSES": "2", "OTHER": "1"}
    assert passed_on(["NCCL_SOCKET_IFNAME", "KEYBOARD"], here) == {"NCCL_SOCKET_IFNAME": "eth1", "KEYBOARD": "de"}
    with pytest.raises(InputError, match="--env NOT_HERE: not set here"):
        passed_on(["NOT_HERE"], here)


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("/shared/runs/mae", "mae"),
        ("/shared/runs/mae/", "mae"),
        ("s3://bucket/runs/mae 2", "mae-2"),
        ("/shared/ä/ü", "run"),
        ("/", "run"),
    ],
)
def test_a_job_is_called_after_its_out(out: str, name: str) -> None:
    assert run_name(out) == name


def test_numbers_go_on_above_the_highest() -> None:
    assert next_id("mae", []) == "mae-1"
    assert next_id("mae", ["mae-1", "mae-9", "mae-10", "mae-x", "other-40", "xmae-77", "mae-3-50"]) == "mae-11"
    assert next_id("a.b", ["axb-7"]) == "a.b-1"


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("maetrain pretrain small --out /a/b/ --address auto", "/a/b"),
        ("maetrain pretrain small --out=/a/./b", "/a/b"),
        ("maetrain pretrain small --out 's3://bucket/a b'", "s3://bucket/a b"),
        ("python train.py --output /a", None),
        ("echo 'open", None),
    ],
)
def test_the_out_of_a_plain_job_is_found(command: str, out: str | None) -> None:
    assert out_of(command) == out


def test_one_place_has_one_spelling() -> None:
    assert same_place("/a//b/../c/") == "/a/c" and same_place("s3://b/c/") == "s3://b/c"


def test_a_job_of_another_version_is_refused_in_the_job() -> None:
    check_sender({})
    check_sender({SENT_BY: version("maetrain")})
    with pytest.raises(InputError, match=rf"maetrain 99\.0, the cluster has {version('maetrain')}"):
        check_sender({SENT_BY: "99.0"})
