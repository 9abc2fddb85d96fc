"""A Ray cluster over several `Hosts`: the head on the first, a node on each other, all as `ray start` makes them.

Ray finds a lost node by a gRPC health check and by nothing else: with the engine's own settings after about
5 * (3 + 10) s, with those here after about 4 * (1 + 2) s. The hosts share /dev/shm and /tmp; Ray's store there is an
unlinked file, and every start gets a session folder of its own, so a node that comes back doesn't meet its old self.
"""

import itertools
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from .hosts import ACROSS, Host, Hosts, environment

PORT = 6379
SOON = {
    # the head asks every node; a node that doesn't answer `threshold` times is dead
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    # nodes, drivers and workers that can't reach the head for so long end; Ray's own setting is 60
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    # how soon a node that was declared dead learns of it after it is back; Ray's own setting is 60000
    "RAY_raylet_liveness_self_check_interval_ms": "5000",
}
SMALL = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    # ranks give way to everything else otherwise, which on two busy cores is for ever
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}


class RayCluster:
    """`with RayCluster(hosts) as cluster`. `cpus`: CPU cores each node says it has."""

    def __init__(self, hosts: Hosts, cpus: Sequence[int] = (1, 1), env: Mapping[str, str] | None = None) -> None:
        self.hosts, self.cpus = hosts, cpus
        self.address = f"{hosts[0].address}:{PORT}"
        token = hosts.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.env = {
            **SOON,
            **SMALL,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            **ACROSS,
            # the code under test, also where an older copy of it is installed
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            **(env or {}),
        }
        self._starts = itertools.count()

    @property
    def head(self) -> Host:
        return self.hosts[0]

    def __enter__(self) -> "RayCluster":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Head and nodes; returns when all have joined."""
        starts = [self._begin(0)]
        self._wait_for_head(starts[0])
        starts += [self._begin(i) for i in range(1, len(self.hosts))]
        for start in starts:
            self._finish(start)

    def stop(self) -> None:
        """SIGKILL to everything in the hosts, the drivers too."""
        for host in self.hosts.hosts:
            host.mend()
            host.kill()

    def restart(self) -> None:
        """All of it anew, as after the loss of the head."""
        self.stop()
        self.start()

    def kill_node(self, i: int) -> None:
        """What a power cut does to a host, with the one difference that the kernel closes its connections."""
        self.hosts[i].kill()

    def restart_node(self, i: int) -> None:
        """A new node on the host of a dead one."""
        self.hosts[i].kill()
        self._finish(self._begin(i))

    def kill_head(self, but: Collection[int] = ()) -> None:
        """The first host's Ray, its ranks too, but not the process groups `but` (those of drivers there)."""
        self.head.kill(but)

    def heal(self) -> None:
        """Every cable in, every node there, and nothing of an earlier run on it; new ones where that is not so."""
        for host in self.hosts.hosts:
            host.mend()
        if not self.is_running(0):
            self.restart()
        for i in range(1, len(self.hosts)):
            if not self.is_running(i):
                self.restart_node(i)

    def is_running(self, i: int) -> bool:
        """Whether host i has a raylet."""
        return any("/raylet/raylet" in _words(pid) for pid in self.hosts[i].pids())

    def wait_for_end(self, i: int, timeout_s: float) -> float:
        """Waits until the raylet of host i has ended by itself; returns the seconds."""
        started = time.monotonic()
        while self.is_running(i):
            assert time.monotonic() - started < timeout_s, f"the raylet of host {i} still runs"
            time.sleep(0.2)
        return time.monotonic() - started

    def rank_pids(self, i: int | None = None) -> list[int]:
        """Processes of Ray Train's ranks on host i, or on all. While a group is set up, some bear other titles."""
        return self.actor_pids("RayTrainWorker", i)

    def actor_pids(self, title: str, i: int | None = None) -> list[int]:
        """Processes whose title, which Ray gives every actor by its class, holds `title`, on host i or on all."""
        hosts = self.hosts.hosts if i is None else [self.hosts[i]]
        return [pid for host in hosts for pid in host.pids() if title in _words(pid)]

    def begin(self, i: int) -> subprocess.Popen:
        """Begins to start the head (0) or node i, and does not wait: it has joined when this ends with 0."""
        return self._begin(i)[2]

    def _begin(self, i: int) -> tuple[int, Path, subprocess.Popen]:
        number = next(self._starts)
        log = self.hosts.folder / f"start{number}.log"
        role = [f"--address={self.address}"] if i else ["--head", f"--port={PORT}", "--include-dashboard=false"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.hosts[i].address}"]
        ray += [f"--num-cpus={self.cpus[i]}", "--num-gpus=0", f"--object-store-memory={80 * 2**20}"]
        ray += ["--disable-usage-stats", "--include-log-monitor=false", f"--temp-dir={self.hosts.folder}/{number}"]
        with log.open("w") as file:
            process = self.hosts[i].popen(
                [*ray, *role], env=environment(self.env), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        return i, log, process

    def _wait_for_head(self, start: tuple[int, Path, subprocess.Popen]) -> None:
        """Until it answers: nodes can join long before `ray start --head` returns."""
        while start[2].poll() is None:
            try:
                socket.create_connection((self.head.address, PORT), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)

    def _finish(self, start: tuple[int, Path, subprocess.Popen]) -> None:
        i, log, process = start
        code = process.wait(timeout=90)
        assert code == 0, f"ray start on host {i} ended with {code}:\n{log.read_text()[-2000:]}"


def _words(pid: int) -> str:
    """A process's command line or the title it gave itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
