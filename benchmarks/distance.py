"""Distance between a client and its server: what either sends arrives later, and no slower.

A process of its own, `python -m benchmarks.distance HOST PORT MILLISECONDS`, which prints the port it listens on. Many
pieces are under way at a time. Event loops count in whole milliseconds, so it waits by `select`, which does not.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE = 1 << 16


class End:
    """One end of a connection through here: a socket, and what has arrived for it."""

    def __init__(self, connected: socket.socket, *, is_client: bool) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        self.socket = connected
        self.is_client = is_client
        self.other = self
        self.closed = False
        self.not_before = 0.0
        """When the last arrives of what is under way to it."""
        self.speaks = True
        """Until it has sent its last."""
        self.arrived = bytearray()
        self.all_has_arrived = False
        self.done = False
        """It has been given all."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def deliver(self) -> None:
        """As much as it takes now; if it has gone, nobody misses it."""
        try:
            del self.arrived[: self.socket.send(self.arrived)]
        except BlockingIOError:
            return
        except OSError:
            self.arrived.clear()
        if self.all_has_arrived and not self.arrived:
            self.done = True
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)


class Distance:
    """Takes connections and delays what they carry."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._target = (host, port)
        self._seconds = seconds
        self._ends: list[End] = []
        self._under_way: list[tuple[float, int, End, bytes | None]] = []
        """When it arrives, the how-manieth it is, where, and what: nothing at all is the end of what there is to come,
        and None a reset of the connection. A heap."""
        self._numbers = itertools.count()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def carry(self, until: socket.socket | int) -> None:
        """Until something can be read there."""
        while True:
            wait = max(0.0, self._under_way[0][0] - time.perf_counter()) if self._under_way else None
            speaking: list[End | socket.socket | int] = [end for end in self._ends if end.speaks]
            full = [end for end in self._ends if end.arrived]
            readable, writable, _ = select.select([*speaking, self.listener, until], full, [], wait)
            if until in readable:
                return
            for end in writable:
                self._deliver(end)
            if self.listener in readable:
                self._accept()
            for one in readable:
                if isinstance(one, End) and not one.closed:
                    self._send_off(one)
            self._arrive()

    def close(self) -> None:
        """Close all connections; nothing is carried any more."""
        self.listener.close()
        for end in self._ends:
            end.socket.close()

    def _accept(self) -> None:
        connected = self.listener.accept()[0]
        try:
            server = socket.create_connection(self._target)
        except OSError:  # it is away: so is this
            connected.close()
            return
        near, far = End(connected, is_client=True), End(server, is_client=False)
        near.other, far.other = far, near
        self._ends += near, far

    def _send_off(self, end: End) -> None:
        try:
            piece = end.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        end.speaks = bool(piece)
        self.passes(end, piece)

    def passes(self, end: End, piece: bytes) -> None:
        """What becomes of a piece that an end has sent."""
        self.on_its_way(end.other, piece, self._seconds)

    def on_its_way(self, end: End, piece: bytes | None, seconds: float) -> None:
        """Let it arrive there, so much later, and after what is under way already; None resets the connection."""
        end.not_before = max(time.perf_counter() + seconds, end.not_before)
        heapq.heappush(self._under_way, (end.not_before, next(self._numbers), end, piece))

    def _arrive(self) -> None:
        now = time.perf_counter()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, end, piece = heapq.heappop(self._under_way)
            if end.closed:
                continue
            if piece is None:
                self.reset(end)
                continue
            end.arrived += piece
            end.all_has_arrived = not piece
            self._deliver(end)

    def _deliver(self, end: End) -> None:
        if not end.closed:
            end.deliver()
            if end.done and end.other.done:
                self._close(end)

    def reset(self, end: End) -> None:
        """End the connection for both, as a network device does that has forgotten it."""
        for one in (end, end.other):
            one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close(end)

    def _close(self, end: End) -> None:
        for one in (end, end.other):
            one.socket.close()
            one.closed = True
            self._ends.remove(one)


@contextmanager
def distance(host: str, port: int, milliseconds: float) -> Iterator[int]:
    """The port on 127.0.0.1 from which it is so far to that server, each way."""
    command = [sys.executable, "-m", "benchmarks.distance", host, str(port), str(milliseconds)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def main(host: str, port: str, milliseconds: str) -> None:
    between = Distance(host, int(port), float(milliseconds) / 1000)
    print(between.listener.getsockname()[1], flush=True)
    between.carry(until=sys.stdin.fileno())  # readable when the parent has ended, however it did


if __name__ == "__main__":
    main(*sys.argv[1:])
