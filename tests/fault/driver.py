"""One run of the console script, watched from outside: its exit code, its log, and what it commits to its folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from .hosts import Host, Hosts, environment

_STEP = re.compile(r"step-(\d+)(-.+)?")


class Run:
    """A started command, the leader of a process group of its own. All times in seconds."""

    def __init__(self, words: Sequence[str], out: Path, env: Mapping[str, str], host: Host | None = None) -> None:
        self.out, self.host = out, host
        number = len(list(out.parent.glob(f"{out.name}.*.log")))
        self.log_file = out.with_name(f"{out.name}.{number}.log")
        self.started = time.monotonic()
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                host.words(words) if host else list(words),
                env=environment({"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **env}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left: torchrun's workers lead groups of their own, which outlive a test that failed."""
        below = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def group(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self, timeout_s: float = 240) -> int:
        """The exit code. The log is in the failure where the command doesn't end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {timeout_s} s at step {self.step()}\n{self.log[-3000:]}") from None

    def finish(self, timeout_s: float = 240) -> None:
        """Waits for the end and asks that it is a good one."""
        code = self.wait(timeout_s)
        assert code == 0, f"ended with {code} at step {self.step()}\n{self.log[-3000:]}"

    def kill(self) -> None:
        """SIGKILL to the whole process group, without a word before."""
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self.process.wait()

    def committed(self) -> dict[str, int]:
        """Every committed checkpoint's folder, with the time of its manifest in nanoseconds."""
        return committed(self.out)

    def step(self) -> int:
        """Of the newest committed checkpoint; -1 before the first."""
        return newest_step(self.out)

    def reach(self, step: int, timeout_s: float = 180) -> int:
        """Waits until a checkpoint of `step` or later is committed; returns its step."""
        self.until(lambda: self.step() >= step, timeout_s, f"step {step}")
        return self.step()

    def until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Waits until `is_so`; fails where the run ends before, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode} before {what}\n{self.log[-3000:]}"
            )
            assert time.monotonic() < deadline, f"no {what} in {timeout_s} s, at {self.step()}\n{self.log[-3000:]}"
            time.sleep(0.02)

    def rank_pids(self) -> list[int]:
        """The ranks torchrun started, by rank; for those of Ray ask `RayCluster.rank_pids`."""
        ranks = {}
        for pid in (process.pid for process in psutil.Process(self.process.pid).children(recursive=True)):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = dict(v.split(b"=", 1) for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if v)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"maetrain.train" in words and b"RANK" in variables:
                ranks[int(variables[b"RANK"])] = pid
        return [ranks[rank] for rank in sorted(ranks)]


def committed(out: Path) -> dict[str, int]:
    """Every committed checkpoint's folder, with the time of its manifest in nanoseconds."""
    found = {}
    for manifest in (out / "checkpoints").glob("step-*/manifest.json"):
        try:
            found[manifest.parent.name] = manifest.stat().st_mtime_ns
        except FileNotFoundError:  # taken away between listing and looking
            continue
    return found


def newest_step(out: Path) -> int:
    """Of the newest committed checkpoint; -1 before the first."""
    return max((step_of(name) for name in committed(out)), default=-1)


def step_of(folder: str) -> int:
    match = _STEP.fullmatch(folder)
    return int(match[1]) if match else -1


def start_run(
    overrides: Sequence[str],
    shards: Path,
    out: Path,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    host: Host | None = None,
    recipe: str = "demo",
    setup_only: Path | None = None,
) -> Run:
    """`maetrain pretrain`, on this machine or on a host; with `address` it joins the Ray cluster there.

    With `setup_only` it writes the setup for `start_processes` to that file and ends.
    """
    # as the console script, but of the code that is tested and not of the one that is installed
    words = [sys.executable, "-c", "from cluster.cli import main; main()", "pretrain", recipe, *overrides]
    words += ["--shards", str(shards), "--out", str(out), *(["--address", address] if address else [])]
    words += ["--setup-only", str(setup_only)] if setup_only else []
    return Run(words, out, {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **(env or {})}, host)


def start_processes(
    setup: Path,
    out: Path,
    processes: int = 1,
    torchrun: Sequence[str] = ("--standalone",),
    env: Mapping[str, str] | None = None,
    host: Host | None = None,
) -> Run:
    """`python -m maetrain.train SETUP`, alone or under a torchrun with the options `torchrun`."""
    launcher = ["-m", "torch.distributed.run", *torchrun, "--nproc-per-node", str(processes)]
    is_alone = processes == 1 and list(torchrun) == ["--standalone"]
    words = [sys.executable, *([] if is_alone else launcher), "-m", "maetrain.train", str(setup)]
    return Run(words, out, {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **(env or {})}, host)


def torchrun_over(hosts: Hosts, i: int, num_hosts: int, port: int = 29400) -> list[str]:
    """Options of the torchrun on host i of the first `num_hosts`. All have one name, so it may not be looked up."""
    return [
        f"--nnodes={num_hosts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={hosts[0].address}:{port}",
        f"--rdzv-conf=is_host={int(i == 0)}",
        f"--local-addr={hosts[i].address}",
    ]


def curve(out: Path) -> dict[int, float]:
    """step -> loss. A step that comes twice is an error."""
    points = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    losses = {point["step"]: point["loss"] for point in points}
    assert len(losses) == len(points), f"{out}: {len(points) - len(losses)} steps stand twice in the curve"
    return losses
