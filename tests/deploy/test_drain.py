"""The script that runs before a Ray pod is stopped, on processes of its own that look like Ray's.

It is handed a folder instead of /proc: on the machine of the test others may be training.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import K8S, build, pods


@pytest.fixture
def script(tmp_path: Path) -> Path:
    manifest = yaml.safe_load((K8S / "base" / "ray" / "drain.yaml").read_text())
    file = tmp_path / "drain.sh"
    file.write_text(manifest["data"]["drain.sh"])
    return file


class Processes:
    """Sleeping processes, each with the words of a command line that it does not have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of: dict[str, subprocess.Popen] = {}
        folder.mkdir()
        (folder / "meminfo").write_text("not a process")

    def start(self, words: str) -> None:
        process = subprocess.Popen(["sleep", "60"])
        self.of[words] = process
        (self.folder / str(process.pid)).mkdir()
        (self.folder / str(process.pid) / "cmdline").write_bytes(words.replace(" ", "\0").encode() + b"\0")

    def ended(self) -> set[str]:
        for _ in range(100):
            told = {words for words, process in self.of.items() if process.poll() == -signal.SIGTERM}
            if told:
                break
            time.sleep(0.01)
        return told


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "proc")
    yield made
    for process in made.of.values():
        process.kill()
        process.wait()


def run(script: Path, folder: Path) -> str:
    """What it would wait, without waiting: `sleep` is a word here."""
    wrapped = f"sleep() {{ echo slept $1; }}; source {script} {folder} 30"
    done = subprocess.run(["bash", "-c", wrapped], capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_ranks_and_the_driver_are_told_and_waited_for(script: Path, processes: Processes) -> None:
    told = {
        "ray::RayTrainWorker.execute",
        "/usr/bin/python /usr/local/bin/maetrain pretrain small --out /data/runs/mae",
        "python -m cluster pretrain ./mine.yaml --out /data/runs/own",
    }
    spared = {
        "ray::IDLE",
        "ray::TrainController.run",
        "sh -c maetrain pretrain small --out /data/runs/mae",
        "/bin/sh -c python -m cluster pretrain ./mine.yaml --out /data/runs/own",
        "/usr/local/lib/ray/raylet --node_ip_address=10.0.0.1",
        "tail -f /data/runs/maetrain/log",
    }
    for words in sorted(told | spared):
        processes.start(words)
    assert run(script, processes.folder) == "slept 30"
    for words in told:
        processes.of[words].wait(timeout=20)
    assert processes.ended() == told


def test_a_pod_without_training_goes_at_once(script: Path, processes: Processes) -> None:
    processes.start("ray::IDLE")
    (processes.folder / "99999999").mkdir()  # one that ended meanwhile
    assert run(script, processes.folder) == ""
    assert processes.of["ray::IDLE"].poll() is None


def test_every_ray_pod_runs_it_from_where_it_is_mounted() -> None:
    for pod in pods(build("overlays/gpu") + build("overlays/gpu/jobs")):
        if pod.component in ("ray-head", "ray-worker"):
            ray = pod.spec["containers"][0]
            (mount,) = [mount for mount in ray["volumeMounts"] if mount["name"] == "drain"]
            (volume,) = [volume for volume in pod.spec["volumes"] if volume["name"] == "drain"]
            assert volume["configMap"] == {"name": "ray-drain"}
            command = ray["lifecycle"]["preStop"]["exec"]["command"]
            assert command[:3] == ["bash", f"{mount['mountPath']}/drain.sh", "/proc"]
