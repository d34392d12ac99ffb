"""The network that the other tests pull on does what it says."""

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy

PATIENCE = 60.0


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        with Proxy((str(host), port)) as proxy:
            yield proxy
        server.shutdown()


def _connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE)


def _hears(connection: socket.socket, data: bytes) -> None:
    connection.settimeout(PATIENCE)
    heard = b""
    while len(heard) < len(data):
        heard += connection.recv(1024)
    assert heard == data


def test_it_passes_bytes_both_ways(proxy: Proxy) -> None:
    with _connect(proxy) as connection:
        connection.sendall(b"hello")
        _hears(connection, b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_silence_holds_everything_and_loses_nothing(proxy: Proxy) -> None:
    with _connect(proxy) as old:
        old.sendall(b"before")
        _hears(old, b"before")
        proxy.silence()
        old.sendall(b"during")
        with _connect(proxy) as new:
            new.sendall(b"new")
            for connection in (old, new):
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
            proxy.forward()
            _hears(old, b"during")
            _hears(new, b"new")


def test_a_cut_ends_what_is_open_and_takes_what_is_new(proxy: Proxy) -> None:
    with _connect(proxy) as connection:
        connection.sendall(b"hello")
        _hears(connection, b"hello")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with _connect(proxy) as connection:
        connection.sendall(b"again")
        _hears(connection, b"again")


def test_refusal_ends_with_the_same_port(proxy: Proxy) -> None:
    with _connect(proxy) as connection:
        connection.sendall(b"hello")
        _hears(connection, b"hello")
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        _connect(proxy)
    proxy.forward()
    with _connect(proxy) as connection:
        connection.sendall(b"back")
        _hears(connection, b"back")
