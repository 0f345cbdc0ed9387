"""What is sent over a distance arrives later, whole and in order, and no slower."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from benchmarks.distance import distance

PATIENCE = 10
FAR = 50.0
"""Milliseconds each way: much more than a busy machine is late."""


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, until it gets no more."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):  # the distance between ends before it does
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def connection(echo: int) -> Iterator[socket.socket]:
    with distance("127.0.0.1", echo, FAR) as port, socket.create_connection(("127.0.0.1", port), PATIENCE) as connected:
        yield connected


def received(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := connection.recv(1 << 16)):
        found += piece
    return found


def test_a_round_trip_takes_twice_the_distance(connection: socket.socket) -> None:
    for _ in range(3):
        started = time.monotonic()
        connection.sendall(b"ping")
        assert received(connection, 4) == b"ping"
        assert time.monotonic() - started >= 2 * FAR / 1000


def test_many_pieces_are_under_way_at_once(echo: int) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(distance("127.0.0.1", echo, FAR))
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(30)]
        started = time.monotonic()
        for connection in connections:
            connection.sendall(b"ping")
        for connection in connections:
            assert received(connection, 4) == b"ping"
        assert time.monotonic() - started < 30 * FAR / 1000


def test_what_is_large_arrives_whole(connection: socket.socket) -> None:
    large = bytes(range(256)) * 40_000  # more than any buffer takes

    def send() -> None:
        connection.sendall(large)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    time.sleep(0.5)  # nobody reads meanwhile
    assert received(connection, len(large) + 1) == large
    sender.join(PATIENCE)


def test_an_end_arrives_after_all_that_was_sent(connection: socket.socket) -> None:
    connection.sendall(b"the last")
    connection.shutdown(socket.SHUT_WR)
    assert received(connection, 9) == b"the last"
    assert connection.recv(1) == b""


def test_one_connections_end_is_no_other_ones(echo: int) -> None:
    with distance("127.0.0.1", echo, 1) as port:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as kept:
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as short:
                    short.sendall(b"short")
                    short.shutdown(socket.SHUT_WR)
                    assert received(short, 6) == b"short"
            kept.sendall(b"kept")
            assert received(kept, 4) == b"kept"
