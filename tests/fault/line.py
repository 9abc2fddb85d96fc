"""A line to a server on this machine that can be cut and mended, and that tells of uploads under way."""

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
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Line":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """All connections end now, and each new one at once."""
        self._is_cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
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
