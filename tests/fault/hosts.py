"""Several hosts on one machine: network namespaces joined by a switch, whose cables can be cut.

Every host has an address of its own and its own loopback, and shares files, /dev/shm and process numbers with the
others. The switch is a bridge in a namespace of its own rather than in the root one, where the firewall of a container
engine may drop what crosses it. Its uplink gives the test process itself an address (`Hosts.gateway`), so a server
in the test can be reached from the hosts, also from one that another host is cut off from.

Names hold the number of the owning process, so runs at the same time don't meet, and what a killed run left behind is
found and removed by the next one. A host takes 30 ms to make.
"""

import ipaddress
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

PREFIX = "mtf"
# of namespaces, and of folders under /tmp that belong to them
_OWNED = re.compile(rf"{PREFIX}(\d+)x\d+(-\w+)?")
# what a process group over several hosts needs: without it gloo would take the loopback
ACROSS = {"GLOO_SOCKET_IFNAME": "eth0"}
_numbers = itertools.count()
_alive: set[str] = set()  # the names made by this process


def why_no_hosts() -> str | None:
    """What keeps this process from making network namespaces; None where nothing does."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if shutil.which("ip") is None:
        return "needs the command `ip` (Debian: iproute2)"
    probe = f"{PREFIX}{os.getpid()}x{next(_numbers)}-p"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "exec", probe, "ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
        _ip("netns", "exec", probe, "ip", "link", "add", "p2", "type", "bridge")
    except OSError as error:
        return f"needs network namespaces, veth and bridge (CAP_SYS_ADMIN, CAP_NET_ADMIN): {error}"
    finally:
        _ip("netns", "del", probe, check=False)
    return None


class Host:
    """One namespace. Everything that is started in it, and all its children, can be killed at once."""

    def __init__(self, name: str, address: str, switch: str, port: str) -> None:
        self.name, self.address = name, address
        self._switch, self._port = switch, port

    def popen(self, words: Sequence[str], **options: object) -> subprocess.Popen:
        """Like `subprocess.Popen`; the process number is the command's own."""
        return subprocess.Popen(self.words(words), **options)  # type: ignore[call-overload]

    def run(self, words: Sequence[str], **options: object) -> subprocess.CompletedProcess:
        """Like `subprocess.run`, with text output."""
        options = {"capture_output": True, "text": True, "timeout": 60} | options
        return subprocess.run(self.words(words), **options)  # type: ignore[call-overload]

    def words(self, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def pids(self) -> list[int]:
        """Of all processes in this host, zombies not counted."""
        return [int(pid) for pid in _ip("netns", "pids", self.name, check=False).split()]

    def cut(self) -> None:
        """Pulls the cable out of the switch; nothing tells the other end."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def mend(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def kill(self, but: Collection[int] = ()) -> None:
        """SIGKILL to every process of this host, except to the process groups `but`. Returns when they are gone."""
        # a fork may slip through the first round
        for _ in range(200):
            pids = [pid for pid in self.pids() if _group(pid) not in but]
            if not pids:
                return
            for pid in pids:
                _kill(pid)
            time.sleep(0.02)
        raise AssertionError(f"{self.name}: processes {pids} outlive SIGKILL")


class Hosts:
    """`with Hosts(2) as hosts`: two hosts that reach each other and the test; skips the test where that can't be."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
        self.hosts: list[Host] = []
        self.gateway = ""
        # short: Ray's sockets must not have more than 107 letters
        self.folder = Path("/tmp") / self.name

    def __enter__(self) -> "Hosts":
        if reason := why_no_hosts():
            pytest.skip(reason)
        remove_leftovers()
        _alive.add(self.name)
        try:
            self._make()
        except BaseException:
            remove(self.name)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        remove(self.name)

    def __getitem__(self, i: int) -> Host:
        return self.hosts[i]

    def __len__(self) -> int:
        return len(self.hosts)

    def _make(self) -> None:
        self.folder.mkdir()
        net = _free_network()
        self.gateway, *addresses = (str(net[i + 1]) for i in range(self.number + 1))
        switch, uplink = f"{self.name}-s", f"{self.name}u"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        _ip("link", "add", uplink, "type", "veth", "peer", "name", "uplink", "netns", switch)
        _ip("-n", switch, "link", "set", "uplink", "master", "br0", "up")
        _ip("addr", "add", f"{self.gateway}/24", "dev", uplink)
        _ip("link", "set", uplink, "up")
        for i, address in enumerate(addresses):
            host, port = f"{self.name}-{i}", f"port{i}"
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            self.hosts.append(Host(host, address, switch, port))


def remove(name: str) -> None:
    """All processes, namespaces, cables and files under `name`; nothing of it need be there."""
    namespaces = [ns for ns in _namespaces() if ns.startswith(f"{name}-")]
    for namespace in namespaces:
        Host(namespace, "", "", "").kill()
    # the kernel takes a namespace down some time after its deletion, and the cables with it
    _ip("link", "del", f"{name}u", check=False)
    for namespace in namespaces:
        _ip("netns", "del", namespace, check=False)
    shutil.rmtree(Path("/tmp") / name, ignore_errors=True)
    _alive.discard(name)


def remove_leftovers() -> None:
    """What runs left behind that were killed themselves: their process is gone, or has only the same number as ours."""
    folders = [path.name for path in Path("/tmp").glob(f"{PREFIX}*x*")]
    for match in filter(None, map(_OWNED.fullmatch, (*_namespaces(), *folders))):
        name = match[0].removesuffix(match[2] or "")
        owner = int(match[1])
        if name not in _alive and (owner == os.getpid() or not Path(f"/proc/{owner}").exists()):
            remove(name)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """That of this process and `extra`, without what a Ray or torchrun around the tests would leave in it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TORCHELASTIC_"))}
    return own | dict(extra)


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if check and done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list", check=False).splitlines() if line.startswith(PREFIX)]


def _free_network() -> ipaddress.IPv4Network:
    """A random 10.x.y.0/24 that meets no route of this machine."""
    routes = [route["dst"] for route in json.loads(_ip("-j", "-4", "route", "show")) if route["dst"] != "default"]
    taken = [ipaddress.ip_network(route, strict=False) for route in routes]
    while True:
        # not from the seeded stream: two runs side by side want different ones
        net = ipaddress.IPv4Network((random.SystemRandom().randrange(2**16) * 2**8 + (10 << 24), 24))
        if not any(net.overlaps(other) for other in taken):
            return net


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
