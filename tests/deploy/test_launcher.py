"""The description of machines for Ray's launcher: what Ray takes, and what is closed in it."""

import copy
import shlex
import sys
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import cli
from tests.docs.blocks import ROOT

FILE = ROOT / "deploy" / "ray" / "cluster.yaml"


def described() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_ray_takes_it() -> None:
    config = prepare_config(described())
    validate_config(config)
    assert config["max_workers"] == len(described()["provider"]["worker_ips"]) == described()["min_workers"]


def test_a_slip_in_it_is_found() -> None:
    wrong = described()
    wrong["head_start_ray_comands"] = wrong.pop("head_start_ray_commands")
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(copy.deepcopy(wrong)))


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_a_token_and_tells_nobody(part: str) -> None:
    (start,) = [shlex.split(line) for line in described()[part] if "ray start" in line]
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(start)
    if "--head" in start:
        assert "--dashboard-host=127.0.0.1" in start and "RAY_JOB_STOP_WAIT_TIME_S=60" in start
    assert described()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("up",), "give FILE"),
        (("up", "--local", str(FILE)), "give FILE"),
        (("up", "nowhere.yaml"), "no such file"),
        (("down", "half.yaml"), "provider is missing"),
        (("status", "bad.yaml"), "not YAML"),
    ],
)
def test_a_wrong_file_is_told_before_ray_sees_it(
    words: tuple[str, ...], part: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Any
) -> None:
    (tmp_path / "half.yaml").write_text("cluster_name: x\n")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["maetrain", "cluster", *words])
    monkeypatch.setattr("subprocess.run", None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    lines = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and part in lines[0]


def test_the_status_of_machines_is_asked_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the head, where `ray status` looks for ~/.ray/auth_token only in this mode."""
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "cluster.commands.cluster.subprocess.run",
        lambda words, **_: asked.append(words) or SimpleNamespace(returncode=0),
    )
    monkeypatch.setattr(sys, "argv", ["maetrain", "cluster", "status", str(FILE)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert [words[1:] for words in asked] == [["exec", str(FILE), "RAY_AUTH_MODE=token ray status"]]
