"""The client of one ending: it sends the request, leaves in one way or another, and knows the run's row."""

from __future__ import annotations

import json
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from websockets.sync.client import ClientConnection, connect

from tests.endings.servers import PATIENCE, Running, eventually

UNNOTICED = 0.3
"""Seconds in which a server that tells the application of a client's leaving has told it, mostly."""


class Client:
    """One client of a running server; its path names one run."""

    def __init__(self, server: Running, path: str, stack: ExitStack, *, reaches_the_handler: bool) -> None:
        self.server = server
        self.path = path
        self.reaches_the_handler = reaches_the_handler
        self.token = path.rsplit("/", 1)[1]
        self._stack = stack

    def send(self, *headers: str, body: bytes = b"", method: str = "POST") -> socket.socket:
        """Connect and send the request; the connection stays open until the test is over."""
        connection = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.server.port), PATIENCE))
        lines = [f"{method} {self.path} HTTP/1.1", "Host: test", *headers]
        if method == "POST" and not any(header.startswith("Content-Length:") for header in headers):
            lines.append(f"Content-Length: {len(body)}")
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body)
        return connection

    def upgrade(self) -> socket.socket:
        """Ask for a WebSocket, and never read an answer."""
        return self.send(
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            method="GET",
        )

    def websocket(self) -> ClientConnection:
        """A WebSocket with a whole client behind it, which answers pings and the closing handshake."""
        url = f"ws://127.0.0.1:{self.server.port}{self.path}"
        return self._stack.enter_context(connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE, proxy=None))

    def await_start(self) -> None:
        """Wait until the handler works, or the server has had the time to call it."""
        if self.reaches_the_handler:
            self.await_event("started")
        else:
            time.sleep(UNNOTICED)

    def await_event(self, word: str) -> None:
        """Wait until the handler has said so."""
        eventually(lambda: self.has_said(word), self.server)

    def has_said(self, word: str) -> bool:
        events = self.server.folder / "events"
        return events.exists() and f"{self.token} {word}" in events.read_text().splitlines()

    def open_gate(self) -> None:
        """Let the handler go on to its end."""
        (self.server.folder / f"{self.token}.gate").touch()

    def open_gate_unless_it_ends(self, seconds: float = UNNOTICED) -> None:
        """Let the handler go on, unless the run ends before, by what the client has done."""
        try:
            eventually(self.has_ended, self.server, seconds=seconds)
        except AssertionError:
            self.open_gate()

    def rows(self, suffix: str = "") -> list[tuple[str, str | None, int | None]]:
        """Status, error code and HTTP status of the runs of this client's path."""
        return rows_of(self.server, f"{self.path}{suffix}")

    def has_ended(self) -> bool:
        rows = self.rows()
        return bool(rows) and all(row[0] != "running" for row in rows)


@contextmanager
def client_of(server: Running, path: str, *, reaches_the_handler: bool = True) -> Iterator[Client]:
    """A client whose connections are closed at the end."""
    with ExitStack() as stack:
        yield Client(server, path, stack, reaches_the_handler=reaches_the_handler)


def leave(connection: socket.socket) -> None:
    """Close the connection: a FIN first, also where unread data make a reset of the rest."""
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def reset(connection: socket.socket) -> None:
    """Close it with a RST, as a crashed client or a network device does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close_half(connection: socket.socket) -> None:
    """Say that nothing more will be sent, and go on reading."""
    connection.shutdown(socket.SHUT_WR)


def read_until(connection: socket.socket, text: bytes) -> None:
    """Read until that has come."""
    read = b""
    while text not in read:
        part = connection.recv(65536)
        assert part, f"the server closed the connection after {read!r}"
        read += part


def rows_of(server: Running, path: str | None = None) -> list[tuple[str, str | None, int | None]]:
    """Status, error code and HTTP status of the runs of a path, or of all, read past the server."""
    query = (
        "SELECT status, error, http_status FROM app_runs WHERE :path IS NULL OR json_extract(kwargs, '$.path') = :path"
    )
    file = server.folder / "skeino.db"
    if not file.exists():  # connecting would make it
        return []
    with closing(sqlite3.connect(file, timeout=PATIENCE)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'app_runs'").fetchone():
            return []  # the first request is only now opening it
        found = connection.execute(query, {"path": path}).fetchall()
    return [(status, error and json.loads(error)["code"], http_status) for status, error, http_status in found]


def checked(server: Running) -> str:
    """What SQLite says of the file itself."""
    with closing(sqlite3.connect(server.folder / "skeino.db", timeout=PATIENCE)) as connection:
        (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    return str(answer)
