"""A TCP proxy that plays the network: it passes, refuses, falls silent, or cuts.

Silence is a pulled cable: connections stay open, what is sent waits, and all of it arrives in
order once the proxy passes again, as TCP would have it. ``cut`` is a reset by a firewall or a
switch: every open connection ends at once, in the middle of whatever it carried.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

_CHUNK = 1 << 16
#: What makes close() send a reset: linger for no time.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards ``host:port`` (a free port of 127.0.0.1) to ``target``. Use it as a context manager.

    Modes may be changed at any time, from any thread. It starts passing.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._passing = threading.Event()
        self._passing.set()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = False
        self._listener = _bound(0)
        self.host, self.port = self._listener.getsockname()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "Proxy":
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._passing.set()
        _close(self._listener)
        self.cut()

    def forward(self) -> None:
        """Pass again: what waited goes on, new connections are taken."""
        if self._refusing:
            self._refusing = False
            self._listen()
        self._passing.set()

    def silence(self) -> None:
        """Take connections and bytes, and let nothing through, either way."""
        self._passing.clear()

    def refuse(self) -> None:
        """Reset what is open and refuse what is new, as a machine does whose program is gone."""
        if not self._refusing:
            self._refusing = True
            _close(self._listener)
            # Bound and not listening: connecting is refused, and nobody else takes the port.
            self._listener = _bound(self.port)
        self.cut()

    def cut(self) -> None:
        """Reset every open connection; new ones are taken."""
        with self._lock:
            doomed = list(self._open)
            self._open.clear()
        for connection in doomed:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RD)  # wakes its pump, and says nothing yet

    def _listen(self) -> None:
        self._listener.listen(128)
        _thread(self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            try:
                near, _ = listener.accept()
            except OSError:  # it was closed: refusing, or the end
                return
            _thread(self._join, near)

    def _join(self, near: socket.socket) -> None:
        self._passing.wait()  # a silent network does not even say that nobody is there
        try:
            far = socket.create_connection(self._target, timeout=60.0)
        except OSError:
            _close(near)
            return
        far.settimeout(None)
        with self._lock:
            self._open |= {near, far}
        back = _thread(self._pump, far, near)
        self._pump(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()  # after a cut a reset, for its linger; else the rest of a goodbye
        far.close()

    def _is_open(self, connection: socket.socket) -> bool:
        with self._lock:
            return connection in self._open

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                self._passing.wait()
                sink.sendall(data)
            self._passing.wait()
            if self._is_open(sink):
                sink.shutdown(socket.SHUT_WR)  # half a goodbye: the other direction may go on
        except OSError:  # one side is gone: so is the other, and its thread
            for side in (source, sink):
                _close(side)


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in it
    connection.close()


def _thread(work: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="proxy", daemon=True)
    thread.start()
    return thread
