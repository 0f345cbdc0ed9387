"""What the proxy breaks is broken as it says, and nothing else is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.servers.proxy import LATE, Fault, Proxy, proxy_to

PATIENCE = 10


class Echo:
    """Sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.got = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while piece := connection.recv(1 << 16):
                self.got += piece
                connection.sendall(piece)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()


class Broken:
    """Breaks what is sent as "break"."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __call__(self, piece: bytes) -> Fault | None:
        return self.fault if piece == b"break" else None


def answered(proxy: Proxy) -> bytes:
    """What comes back of "break"; ends with "!" if the connection was reset."""
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as connection:
        connection.sendall(b"well")
        assert connection.recv(9) == b"well"
        connection.sendall(b"break")
        found = b""
        try:
            while len(found) < 5 and (piece := connection.recv(9)):
                found += piece
        except ConnectionResetError:
            found += b"!"
        return found


@pytest.mark.parametrize(
    ("fault", "seen", "comes_back"),
    [("unsent", b"", b"!"), ("cut", b"br", b"!"), ("unanswered", b"break", b"!"), ("torn", b"break", b"br!")],
)
def test_a_connection_is_broken_at_that_very_point(echo: Echo, fault: Fault, seen: bytes, comes_back: bytes) -> None:
    host, port = echo.listener.getsockname()
    with proxy_to(f"echo://{host}:{port}", Broken(fault)) as proxy:
        assert answered(proxy) == comes_back
        assert echo.got.removeprefix(b"well") == seen
        assert proxy.landed == {fault: 1}
        assert proxy.resets == 1


def test_nothing_passes_while_it_is_held_and_then_it_is_reset(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.servers.proxy.HELD", 0.3)
    host, port = echo.listener.getsockname()
    with proxy_to(f"echo://{host}:{port}", Broken("held")) as proxy:
        begin = time.monotonic()
        assert answered(proxy) == b"!"
        assert time.monotonic() - begin >= 0.3


def test_what_is_late_arrives_whole(echo: Echo) -> None:
    host, port = echo.listener.getsockname()
    with proxy_to(f"echo://{host}:{port}", Broken("late")) as proxy:
        begin = time.monotonic()
        assert answered(proxy) == b"break"
        assert time.monotonic() - begin >= LATE
        assert proxy.resets == 0
