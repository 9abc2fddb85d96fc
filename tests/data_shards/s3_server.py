"""A bucket on this machine, and a proxy before it that does to answers what networks do. All on the loopback."""

import itertools
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.request import Request, urlopen

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from data_shards.formats import remote

Fault = Literal["500", "503", "reset", "cut", "cut upload", "slow", "stall", "flip"]
EVERYTHING = ("GET", "ranged GET", "HEAD", "PUT", "POST", "DELETE")
SLOW_S = 0.2


@contextmanager
def s3_server() -> Iterator[str]:
    """A server of empty S3 on a free port; gives its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        # all servers of a process share their buckets
        urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()
        yield url
    finally:
        server.stop()


def use_server(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """From here on `s3://` is the server at `url`, for this process and those it starts."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_clients()


def forget_clients() -> None:
    """Clients keep the endpoint they were made for; the next ones ask the environment."""
    remote._clients.clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def every(n: int, *faults: Fault) -> Callable[[int], Fault | None]:
    """Each n-th answer suffers one of `faults`, in turn."""
    return lambda number: faults[number // n % len(faults)] if number % n == n - 1 else None


def some(share: float, seed: int, *faults: Fault) -> Callable[[int], Fault | None]:
    """About `share` of the answers, drawn at random, suffer one of `faults`."""

    def fault_of(number: int) -> Fault | None:
        dice = random.Random(f"{seed} {number}")
        return dice.choice(faults) if dice.random() < share else None

    return fault_of


class FaultyProxy:
    """Passes requests on to `target`. `fault_of(number)` says what becomes of the answer to a ranged GET, from 0 on.

    With `to` other methods can be chosen: ("PUT",) are uploads, `EVERYTHING` is all; `only` those count whose path
    has that in it.

    500, 503: it is an error. reset: the connection is reset instead. cut: half of the body comes, then the end. cut
    upload: the connection is reset when half of the request's body is read, and the target hears nothing. slow: it
    waits `SLOW_S`. stall: half of the body comes, then nothing. flip: one bit in the middle is another.
    """

    def __init__(
        self,
        target: str,
        fault_of: Callable[[int], Fault | None],
        to: tuple[str, ...] = ("ranged GET",),
        only: str = "",
    ) -> None:
        self.fault_of, self.to, self.only = fault_of, to, only
        self.faults: list[Fault] = []  # those that happened
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self, target.removeprefix("http://")))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def next_fault(self) -> Fault | None:
        fault = self.fault_of(next(self._numbers))
        if fault is not None:
            self.faults.append(fault)
        return fault

    def stall(self) -> None:
        self._stopped.wait(60)

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away while its answer is under way is what the tests are about."""


def _handler(proxy: FaultyProxy, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reset(self) -> None:
            # no lingering: the close is a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def pass_on(self) -> None:
            kind = ("ranged " if self.headers.get("Range") is not None else "") + self.command
            fault = proxy.next_fault() if kind in proxy.to and proxy.only in self.path else None
            num_bytes = int(self.headers.get("Content-Length") or 0)
            if fault == "cut upload":
                self.rfile.read(num_bytes // 2)
                self.reset()
                return
            body = self.rfile.read(num_bytes)
            upstream = HTTPConnection(target, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault == "reset":
                self.reset()
                return
            if fault in ("500", "503") and self.command != "HEAD":
                code = {"500": "InternalError", "503": "SlowDown"}[fault]
                content = f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            if fault == "slow":
                time.sleep(SLOW_S)
            if fault == "flip":
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            self.send_response_only(int(fault) if fault in ("500", "503") else answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault in ("cut", "stall"):
                self.wfile.write(content[: len(content) // 2])
                if fault == "stall":
                    proxy.stall()
                self.close_connection = True
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
