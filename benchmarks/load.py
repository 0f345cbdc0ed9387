"""Requests over keep-alive connections, so many at once: a client that costs little beside what it measures.

One thread, blocking sockets, and a selector that says which of them has its answer.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from benchmarks.throughput import Turn
from benchmarks.uvicorns import Served

PATIENCE = 60.0
"""Seconds to wait for an answer."""


class Client:
    """So many connections to a server on this machine, each with one request at a time."""

    def __init__(self, server: Served, at_once: int) -> None:
        self._numbers = server.numbers
        self._connections = [_Connection(server.port) for _ in range(at_once)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.socket.close()

    def get(self, path: str) -> bytes:
        """The body of the answer; when no other request is under way."""
        connection = self._connections[0]
        connection.send(b"GET %s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % path.encode())
        while (body := connection.receive()) is None:
            pass
        return body

    def begin(self, path: str) -> None:
        """Ask on each connection, and do not wait for the answers."""
        for connection in self._connections:
            connection.send(_request(path, self._numbers))

    def finish(self, path: str = "", goes_on: Callable[[], bool] = lambda: False) -> list[float]:
        """Wait for all answers, and ask anew on each connection while it goes on; what each took, in seconds."""
        seconds: list[float] = []
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            waiting = len(self._connections)
            while waiting:
                ready = selector.select(PATIENCE)
                if not ready:
                    raise TimeoutError(f"{waiting} requests were not answered in {PATIENCE:.0f} s.")
                for key, _ in ready:
                    if key.data.receive() is None:
                        continue
                    seconds.append(time.perf_counter() - key.data.asked_at)
                    if goes_on():
                        key.data.send(_request(path, self._numbers))
                    else:
                        selector.unregister(key.fileobj)
                        waiting -= 1
        return seconds


def turn(server: Served, path: str, at_once: int, seconds: float) -> Turn:
    """Requests for so long; the clock stops when all are answered and what they left to write is written, too."""
    with Client(server, at_once) as client:
        client.get("/clock/renewed")
        started = time.perf_counter()
        deadline = started + seconds
        client.begin(path)
        waits = client.finish(path, lambda: time.perf_counter() < deadline)
        client.get("/clock/settled")
        return Turn(len(waits) / (time.perf_counter() - started), {"request": waits})


def _request(path: str, numbers: Iterator[int]) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: benchmarks\r\naccept: */*\r\n"
        f"x-thread-id: thread-{next(numbers):020}\r\ncontent-length: 0\r\n\r\n"
    ).encode()


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked_at = 0.0
        self._received = b""

    def send(self, request: bytes) -> None:
        self._received = b""
        self.asked_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The answer's body, or None while there is more to come."""
        received = self.socket.recv(65536)
        self._received += received
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"The server answered {head[:200]!r}.")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return body
        if not received:
            raise ConnectionError("The server closed the connection.")
        return None
