"""A line to a server on this machine that fails in the ways networks do, and that tells of uploads under way."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Line:
    """`with Line(url) as line`: what goes to `line.url` comes to the server at `url`.

    `on_upload` hears the first line of each PUT when half of what came with it has been passed on.
    """

    def __init__(self, target: str, on_upload: Callable[[str], None] = lambda _: None) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self.target, self.on_upload = (host, int(port)), on_upload
        self.refused = 0  # connections, while the line was cut
        self._open: set[socket.socket] = set()
        self._is_cut = self._is_hung = False
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Line":
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.refuse()

    def cut(self) -> None:
        """All connections end now, and each new one at once."""
        self._is_cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """All connections end now and nobody listens, as when the server has stopped."""
        self.cut()
        with suppress(OSError):  # wakes the thread that accepts; to close alone would leave it the port
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def hang(self) -> None:
        """Connections stay and new ones are made, but nothing comes through; what was under way stays lost."""
        self._is_hung = True

    def mend(self) -> None:
        self._is_cut = self._is_hung = False
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if self._is_hung:
                self._open.add(near)
                continue
            if self._is_cut:
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(self.target)
            self._open |= {near, far}
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_up: bool) -> None:
        upload = ""
        with suppress(OSError):
            while chunk := source.recv(2**16):
                if self._is_hung:
                    self._is_over.wait()
                    break
                if is_up and chunk.startswith(b"PUT "):
                    upload = chunk.split(b"\r\n", 1)[0].decode()
                    head, blank, chunk = chunk.partition(b"\r\n\r\n")
                    target.sendall(head + blank)
                if upload and chunk:
                    half = len(chunk) // 2
                    target.sendall(chunk[:half])
                    self.on_upload(upload)
                    upload, chunk = "", chunk[half:]
                target.sendall(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        time.sleep(0.1)  # the other direction may be at its last words
        for end in (source, target):
            end.close()
            self._open.discard(end)
