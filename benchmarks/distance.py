"""Distance between a client and its server: what either sends arrives later, and no slower.

A process of its own, `python -m benchmarks.distance HOST PORT MILLISECONDS`, which prints the port it listens on. Many
pieces are under way at a time. Event loops count in whole milliseconds, so it waits by `select`, which does not.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE = 1 << 16


class _End:
    """One end of a connection through here: a socket, and what has arrived for it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        self.socket = connected
        self.other = self
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
        self._ends: list[_End] = []
        self._under_way: deque[tuple[float, _End, bytes]] = deque()
        """When it arrives, where, and what; nothing at all is the end of what there is to come."""
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def carry(self, until: socket.socket | int) -> None:
        """Until something can be read there."""
        while True:
            wait = max(0.0, self._under_way[0][0] - time.perf_counter()) if self._under_way else None
            speaking: list[_End | socket.socket | int] = [end for end in self._ends if end.speaks]
            full = [end for end in self._ends if end.arrived]
            readable, writable, _ = select.select([*speaking, self.listener, until], full, [], wait)
            if until in readable:
                return
            for end in writable:
                self._deliver(end)
            if self.listener in readable:
                self._accept()
            for one in readable:
                if isinstance(one, _End):
                    self._send_off(one)
            self._arrive()

    def _accept(self) -> None:
        near = _End(self.listener.accept()[0])
        far = _End(socket.create_connection(self._target))
        near.other, far.other = far, near
        self._ends += near, far

    def _send_off(self, end: _End) -> None:
        try:
            piece = end.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        end.speaks = bool(piece)
        self._under_way.append((time.perf_counter() + self._seconds, end.other, piece))

    def _arrive(self) -> None:
        now = time.perf_counter()
        while self._under_way and self._under_way[0][0] <= now:
            _, end, piece = self._under_way.popleft()
            end.arrived += piece
            end.all_has_arrived = not piece
            self._deliver(end)

    def _deliver(self, end: _End) -> None:
        end.deliver()
        if end.done and end.other.done:
            for one in (end, end.other):
                one.socket.close()
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
