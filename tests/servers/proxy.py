"""`Proxy`: stands between clients and their server, in a thread of its own, and breaks connections where it is told to.

It breaks them at the moment when a client has sent something, so there is always an operation in flight.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from benchmarks.distance import Distance, End

Fault = Literal["unsent", "cut", "unanswered", "torn", "held", "late"]
"""What becomes of a piece that a client has sent. But for "late", the connection is reset.

- "unsent": the server never sees it;
- "cut": the server sees the first half of it;
- "unanswered": the server has answered, and the client never sees that;
- "torn": the client sees the first half of the answer;
- "held": the server has it, and nothing more passes, for as long as `HELD`;
- "late": the answer takes `LATE` seconds more.
"""

AMBIGUOUS: Final[frozenset[Fault]] = frozenset({"unanswered", "torn", "held"})
"""The server has had all of it, and the client does not know."""

PAUSES_OF_PYMONGO: Final = ("pymongo.common.MIN_HEARTBEAT_INTERVAL", "pymongo.network_layer._POLL_TIMEOUT")
"""Half a second each, after each connection that broke; tests that break many make them shorter."""

HELD: Final = 4.0
LATE: Final = 0.1
_AT_ONCE: Final = 0.001  # after what was let through
_OF_CONNECTIONS: Final = (b"hello\x00", b"ismaster\x00", b"isMaster\x00", b"ping\x00", b"sasl", b"endSessions\x00")


class Proxy(Distance):
    """Carries what passes, but for what goes wrong.

    Args:
        host: the server's.
        port: the server's.
        choose: says what becomes of a piece that a client has sent; None lets it pass. Called in the thread.
    """

    def __init__(self, host: str, port: int, choose: Callable[[bytes], Fault | None]) -> None:
        super().__init__(host, port, 0.0)
        self._choose = choose
        self._faults: dict[End, Fault] = {}
        """Of clients who wait for an answer."""
        self.landed: Counter[Fault] = Counter()
        """What has gone wrong, on connections that both sides still had."""

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    @property
    def resets(self) -> int:
        return sum(number for fault, number in self.landed.copy().items() if fault != "late")

    def passes(self, end: End, piece: bytes) -> None:
        client = end if end.is_client else end.other
        fault = self._faults.get(client)
        if not piece:  # one of the two has ended it
            self._faults.pop(client, None)
            super().passes(end, piece)
        elif end.is_client:
            self._sent(client, piece, fault)
        else:
            self._answered(client, piece, fault)

    def reset(self, end: End) -> None:
        client = end if end.is_client else end.other
        if (fault := self._faults.pop(client, None)) is not None:
            self.landed[fault] += 1
        super().reset(end)

    def _sent(self, client: End, piece: bytes, fault: Fault | None) -> None:
        if fault is None and (fault := self._choose(piece)) is not None:
            self._faults[client] = fault
        if fault == "unsent":
            self.reset(client)
        elif fault == "cut":
            super().passes(client, piece[: len(piece) // 2])
            self._reset_later(client, _AT_ONCE)
        else:
            super().passes(client, piece)
            if fault == "held":
                self._reset_later(client, HELD)

    def _answered(self, client: End, piece: bytes, fault: Fault | None) -> None:
        server = client.other
        if fault == "unanswered":
            self.reset(client)
        elif fault == "torn":
            super().passes(server, piece[: len(piece) // 2])
            self._reset_later(client, _AT_ONCE)
        elif fault == "late":
            del self._faults[client]
            self.landed[fault] += 1
            self.on_its_way(client, piece, LATE)
        else:
            super().passes(server, piece)

    def _reset_later(self, client: End, seconds: float) -> None:
        """Let nothing more pass until then."""
        client.speaks = client.other.speaks = False
        for end in (client, client.other):
            self.on_its_way(end, None, seconds)  # after what is under way to it; the first of them resets both


class Script:
    """What becomes of the next operations, the first of them first; the others pass.

    What merely makes or watches a connection is no operation.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self.faults: list[Fault | None] = []
        self.operations = 0

    def __call__(self, piece: bytes) -> Fault | None:
        if not is_operation(self._scheme, piece):
            return None
        self.operations += 1
        return self.faults.pop(0) if self.faults else None


def is_operation(scheme: str, piece: bytes) -> bool:
    """Whether a client asks for something that is more than its connection."""
    if scheme == "postgres":  # a query, or the parsing or binding of one; the rest begins or ends a session
        return piece[:1] in (b"Q", b"P", b"B")
    return not any(word in piece[:100] for word in _OF_CONNECTIONS)


def through(port: int, scheme: str, uri: str) -> str:
    """The URI by which the proxy is gone through that listens there."""
    parts = urlsplit(uri)
    netloc = f"{parts.netloc.rpartition(':')[0]}:{port}"
    query = dict(parse_qsl(parts.query))
    if scheme == "mongodb":  # whose client would ask the replica set where else it is
        query.pop("replicaSet", None)
        query["directConnection"] = "true"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query)))


@contextmanager
def proxy_to(uri: str, choose: Callable[[bytes], Fault | None]) -> Iterator[Proxy]:
    """A proxy to the server of that URI, which carries until the block is left."""
    parts = urlsplit(uri)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port, choose)
    stop, stopped = socket.socketpair()
    thread = threading.Thread(target=proxy.carry, args=(stopped,), name="proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        stop.sendall(b"!")
        thread.join()
        proxy.close()
        stop.close()
        stopped.close()
