"""The Slurm script: read by shellcheck, and run with commands of Slurm and Ray that note how they are called."""

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

SCRIPT = ROOT / "deploy" / "slurm" / "maetrain.sbatch"
STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" != show ] || printf "node1\\nnode2\\n"',
    "srun": """
cores=1
while [ "${1#-}" != "$1" ]; do
    case "$1" in -w) shift ;; --cpus-per-task=*) cores=${1#*=} ;; esac
    shift
done
[ "$1" != hostname ] || { echo "10.9.8.7 192.168.0.1"; exit 0; }
echo "$* cores=$cores token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")/$(wc -c < "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
trap 'echo "daemon ended" >> "$CALLS"; exit 0' TERM
while :; do sleep 0.1; done
""",
    "python": 'joined=$(grep -c "^ray start" "$CALLS" 2> /dev/null); echo "${joined:-0}"',
    "maetrain": """
echo "maetrain $* secret=${A_SECRET:-none}" >> "$CALLS"
[ "$1" != wait ] || { trap 'echo "checkpoint" >> "$CALLS"; exit 143' TERM; while :; do sleep 0.1; done; }
[ "$1" != fail ] || exit 7
""",
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.write_text(f"#!/bin/bash\n{text}\n")
        stub.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
    }


def run(env: dict[str, str], *words: str) -> tuple[int, list[str], str]:
    done = subprocess.run(["bash", SCRIPT, *words], env=env, capture_output=True, text=True, timeout=60)
    calls = Path(env["CALLS"])
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian package shellcheck)")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


def test_head_nodes_and_command_are_started_and_ended(env: dict[str, str], tmp_path: Path) -> None:
    code, calls, stderr = run(env, "maetrain", "pretrain", "small", "a=[1, 2]")
    assert code == 0, stderr
    started = sorted(call for call in calls if call.startswith("ray start"))
    assert "--address=10.9.8.7:24321" in started[0] and "--head" not in started[0]
    assert "--head --node-ip-address=10.9.8.7 --port=24321 --dashboard-host=127.0.0.1" in started[1]
    assert all("cores=16" in call for call in started), "srun would give each step one core"
    assert all("--num-cpus=16 --num-gpus=4" in call and call.endswith("token=600/64") for call in started)
    assert "maetrain pretrain small a=[1, 2] --address 10.9.8.7:24321 secret=none" in calls
    assert not list((tmp_path / ".maetrain" / "slurm").iterdir()), "the token goes with the job"
    assert not any("requeue" in call for call in calls)


def test_the_token_is_in_no_command_line(env: dict[str, str]) -> None:
    text = SCRIPT.read_text()
    assert "RAY_AUTH_TOKEN=" not in text and "RAY_AUTH_MODE=token" in text
    assert [line for line in text.splitlines() if "urandom" in line and line.endswith('> "$token"')]


def test_the_commands_exit_code_is_the_jobs(env: dict[str, str]) -> None:
    assert run(env, "maetrain", "fail")[0] == 7
    code, calls, stderr = run(env | {"CALLS": env["CALLS"] + "2"})
    assert (code, calls) == (2, []) and "usage" in stderr


def test_secrets_come_from_a_file(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secrets.env").write_text("# of mine\n\nA_SECRET=it's $HOME & of the file\n")
    env |= {"MAETRAIN_ENV_FILE": str(tmp_path / "secrets.env")}
    _, calls, _ = run(env, "maetrain", "x")
    assert any(call.endswith("secret=it's $HOME & of the file") for call in calls)
    (tmp_path / "secrets.env").write_text("hush & hush\n")
    code, _, stderr = run(env, "maetrain", "x")
    assert code == 2 and "a line is no NAME=VALUE" in stderr and "hush" not in stderr


def test_at_the_time_limit_only_the_driver_is_asked_and_the_job_comes_again(env: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", SCRIPT, "maetrain", "wait"], env=env, stderr=subprocess.PIPE)
    calls = Path(env["CALLS"])
    try:
        while not (calls.exists() and "maetrain wait" in calls.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
    end = [
        line for line in calls.read_text().splitlines() if line in ("checkpoint", "daemon ended") or "requeue" in line
    ]
    assert end[:2] == ["checkpoint", "scontrol requeue 4321"], "Ray is there until the checkpoint is stored"


def test_a_node_that_does_not_join_is_told(env: dict[str, str], tmp_path: Path) -> None:
    for name, text in (("python", "echo 1"), ("sleep", ":")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    code, calls, stderr = run(env, "maetrain", "pretrain")
    assert code == 1 and "not all of 2 nodes have joined Ray at 10.9.8.7:24321" in stderr
    assert not any(call.startswith("maetrain") for call in calls)
