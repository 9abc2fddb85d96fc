"""Groups of training processes as a launcher starts them, but ten times faster.

Each rank is a process of its own, forked off a server that has imported everything: a start takes one second, and not
ten. The group is not restarted by itself, so that a test sees each end. What only torchrun can show is tested with it.
"""

import ctypes
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil

from data_shards.formats.files import location
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import MANIFEST, read_committed, step_folders, step_of
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve
from tests.maetrain.small import small_setup

from .faulty_train import Fault, Faults

EVERY, STEPS = 6, 24  # of `short_setup`
_STEP = re.compile(r"^step (\d+)/\d+  loss", re.MULTILINE)
_GRACE_S = 30  # for ranks whose neighbour is dead: they notice by themselves
_PR_SET_PDEATHSIG = 1
_context: list[ForkServerContext] = []


def short_setup(index: ShardIndex, run_dir: Path | str, **changes: object) -> PretrainSetup:
    """The run that faults strike: `STEPS` steps, a checkpoint every `EVERY`."""
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "zero_stage": 1, "stall_timeout_s": 60}
    return small_setup(index, run_dir, **(settings | changes))  # type: ignore[arg-type]


def _server() -> ForkServerContext:
    if not _context:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["maetrain.train.engine", "tests.fault.faulty_train"])
        _context.append(context)
    return _context[0]


def _rank(arguments: list[str], env: dict[str, str], log: str) -> None:
    """In the rank's process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives the tests
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    from .faulty_train import main

    raise SystemExit(main(arguments))


class Group:
    """One start of the ranks of a run. `faults` strike once for a run, however often it is started."""

    def __init__(
        self,
        setup: PretrainSetup,
        size: int,
        faults: Sequence[Fault] = (),
        name: str = "run",
        record: bool = False,
        folder: Path | None = None,
        start: int | None = None,
    ) -> None:
        self.folder = folder or Path(setup.run_dir).parent
        self.run_dir, self.size = setup.run_dir, size
        self.start = len(list(self.folder.glob(f"{name}-*-rank-0.log"))) if start is None else start
        (setup_file := self.folder / f"{name}.json").write_text(setup.model_dump_json())
        recorded = self.folder / "record"
        if record:
            recorded.mkdir(exist_ok=True)
        plan = Faults(faults=tuple(faults), record=str(recorded) if record else None)
        (faults_file := self.folder / f"{name}.faults.json").write_text(plan.model_dump_json())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [self.folder / f"{name}-{self.start:03d}-rank-{rank}.log" for rank in range(size)]
        self.ranks: list[ForkServerProcess] = []
        for rank, log in enumerate(self.logs):
            env = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "START": self.start,
                **{key: value for key, value in os.environ.items() if key.startswith("AWS_")},
            }  # fmt: skip
            words = [str(faults_file), str(setup_file)]
            arguments = (words, {key: str(value) for key, value in env.items()}, str(log))
            process = _server().Process(target=_rank, args=arguments, daemon=True)
            process.start()
            self.ranks.append(process)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def log(self, rank: int = 0) -> str:
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].is_file() else ""

    @property
    def steps(self) -> list[int]:
        """Those done and printed so far."""
        return steps_in(self.log())

    def wait(self, timeout_s: float = 200) -> list[int | None]:
        """The ranks' exit codes, negative = killed by that signal. Those left behind by a dead one have 30 s."""
        deadline = time.monotonic() + timeout_s
        while any(rank.exitcode is None for rank in self.ranks):
            assert time.monotonic() < deadline, f"no end after {timeout_s} s\n{self.tails()}"
            if any(rank.exitcode not in (None, 0) for rank in self.ranks):
                deadline = min(deadline, time.monotonic() + _GRACE_S)
                for rank in self.ranks:
                    rank.join(max(0.0, deadline - time.monotonic()))
                break
            time.sleep(0.02)
        codes = [rank.exitcode for rank in self.ranks]
        self.kill()
        return codes

    def finish(self, timeout_s: float = 200) -> None:
        codes = self.wait(timeout_s)
        assert codes == [0] * self.size, f"exit codes {codes}\n{self.tails()}"

    def tails(self) -> str:
        return "\n".join(f"--- {log.name}\n{self.log(rank)[-1500:]}" for rank, log in enumerate(self.logs))

    def kill(self, ranks: Sequence[int] | None = None) -> None:
        """SIGKILL."""
        for rank in self.ranks if ranks is None else [self.ranks[rank] for rank in ranks]:
            if rank.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(rank.pid or 0, signal.SIGKILL)
                rank.join()

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.ranks[rank].pid or 0, number)

    def reach(self, step: int, timeout_s: float = 100) -> None:
        """Until `step` is done."""
        self.until(lambda: self.steps[-1:] >= [step], timeout_s, f"step {step}")

    def until(self, is_so: Callable[[], object], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            ended = [rank.exitcode for rank in self.ranks]
            assert ended == [None] * self.size, f"ended with {ended} before {what}\n{self.tails()}"
            assert time.monotonic() < deadline, f"no {what} in {timeout_s} s\n{self.tails()}"
            time.sleep(0.01)


def committed(run_dir: Path | str) -> list[int]:
    """Steps of the checkpoints that have a manifest."""
    folders = step_folders(location(run_dir) / "checkpoints")
    return sorted(step_of(folder) for folder in folders if (folder / MANIFEST).is_file())


def curve(run_dir: Path | str) -> Curve:
    """Each step stands there once, in order."""
    points = Curve.load(location(run_dir) / "curve.jsonl")
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return points


def numbers(run_dir: Path | str) -> list[str]:
    """Loss, learning rate and gradient norm of every step, to the last bit; also of what is no number."""
    return [repr((point.loss, point.learning_rate, point.gradient_norm)) for point in curve(run_dir)]


def losses(run_dir: Path | str) -> list[float]:
    return [point.loss for point in curve(run_dir)]


def steps_in(log: str) -> list[int]:
    """Those that the first rank has printed."""
    return [int(number) for number in _STEP.findall(log)]


def ranks_below(pid: int) -> dict[int, int]:
    """rank -> process number, of those that the torchrun `pid` has started."""
    found = {}
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if "RANK" in (env := process.environ()):
                    found[int(env["RANK"])] = process.pid
    return found


def assert_tidy(run_dir: Path | str, last: int, keep: int) -> None:
    """Nothing is left but whole checkpoints, the last one among them."""
    folders = step_folders(location(run_dir) / "checkpoints")
    steps = {read_committed(folder).step for folder in folders}
    assert last in steps and len(steps) <= keep, steps
    strays = [path for path in Path(run_dir).rglob("*") if path.name.startswith(".tmp-") or "partial" in path.name]
    assert not strays, strays


def trained_on(folder: Path) -> dict[int, list[str]]:
    """step -> samples in the order of the run, of the last start that did it. `folder`: what `record` wrote."""
    passes: dict[int, dict[int, list[dict]]] = {}
    for path in sorted(folder.glob("start-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            passes.setdefault(line["step"], {}).setdefault(line["start"], []).append(line)
    history = {}
    for step, by_start in sorted(passes.items()):
        last = by_start[max(by_start)]
        by_rank = [[line for line in last if line["rank"] == rank] for rank in range(last[0]["size"])]
        rows = zip(*by_rank, strict=True)  # pass by pass
        history[step] = [key for row in rows for line in row if line["weight"] for key in line["keys"]]
    return history


def torchrun(folder: Path, setup: PretrainSetup, faults: Sequence[Fault], restarts: int) -> list[str]:
    """The command that starts two ranks, and again at each end that is not a good one."""
    (faults_file := folder / "faults.json").write_text(Faults(faults=tuple(faults)).model_dump_json())
    (setup_file := folder / "setup.json").write_text(setup.model_dump_json())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return [sys.executable, *launcher, "-m", "tests.fault.faulty_train", str(faults_file), str(setup_file)]
