"""Clients leave a real server in the middle of its answers: no run is left that has not ended."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.chaos import fleet as fleets
from tests.chaos.fleet import Fleet, Place, until
from tests.chaos.streaming import HANDLERS, WORDS
from tests.chaos.table import table_of
from tests.servers.process import free_port

LEASE = 30.0
AT_ONCE: Final = 60
STAYS: Final = 0.1
"""The part of the clients that stay to the end."""

SOON: Final = 10.0
"""Seconds after which no run may be active."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 2000)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return {**fleets.on_each(arguments, console, leave), "lease_seconds": LEASE}


def table(result: dict[str, Any]) -> Table:
    return table_of("Clients that leave in the middle of an answer", result)


async def leave(fleet: Fleet, times: int) -> dict[str, Any]:
    """Let so many clients leave, others stay, and look at the runs of all."""
    clients = Clients()
    async with _served(fleet.place) as port:
        await asyncio.gather(*(clients.come(port, times) for _ in range(AT_ONCE)))

        async def all_have_ended() -> bool:
            return not await fleet.store.search_runs(status=["pending", "running"])

        began = time.monotonic()
        await until(all_have_ended, SOON)
        seconds = time.monotonic() - began
        active = await fleet.store.search_runs(status=["pending", "running"], limit=1000)
    rows = await fleet.all_rows()
    acknowledged = clients.left.keys() | clients.stayed.keys()
    lost = acknowledged - rows.keys()
    contradicted = [one for one in clients.stayed if one in rows and rows[one]["status"] != "success"]
    unknown = rows.keys() - acknowledged  # of clients who left before they were told
    failures = [f"the run {row['run_id']} has not ended" for row in active]
    failures += [f"the run {run_id} had started, and has no row" for run_id in lost]
    failures += [f"the run {one} was answered wholly, and is {rows[one]['status']}" for one in contradicted]
    failures += clients.problems
    statuses = {
        path: Counter(rows[one]["status"] for one, of in clients.left.items() if of == path and one in rows)
        for path in HANDLERS
    }
    return {
        "clients_that_left": clients.number_left,
        "clients_that_stayed": len(clients.stayed),
        "runs": len(rows),
        "runs_nobody_was_told_of": len(unknown),
        "left_non_terminal": len(active),
        "acknowledged_and_missing": len(lost),
        "acknowledged_and_contradicted": len(contradicted),
        **{f"{path[1:]}_{status}": number for path in HANDLERS for status, number in sorted(statuses[path].items())},
        "last_ended_after_seconds": seconds,
        "failures": failures,
    }


class Clients:
    """Who has come, and how they went."""

    def __init__(self) -> None:
        self.number_left = 0
        self.left: dict[str, str] = {}
        """The runs of those who left, with their paths; those who left before the headers came know of none."""
        self.stayed: dict[str, str] = {}
        self.problems: list[str] = []

    async def come(self, port: int, times: int) -> None:
        """One after the other, until enough of all have left."""
        while self.number_left < times and len(self.problems) < 10:
            path = random.choice([*HANDLERS])
            stays = random.random() < STAYS
            words = WORDS + 1 if stays else random.randrange(WORDS - 1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".encode())
                run_id, complete = await _heard(reader, words)
            except (ConnectionError, asyncio.IncompleteReadError) as exc:
                self.problems.append(f"the server has left its client: {exc}")
                continue
            finally:
                _go(writer)
            if stays and not complete:
                self.problems.append(f"an answer was not complete: {path}, run {run_id}")
            elif complete and run_id is not None:
                self.stayed[run_id] = path
            else:
                self.number_left += 1
                if run_id is not None:
                    self.left[run_id] = path


async def _heard(reader: asyncio.StreamReader, words: int) -> tuple[str | None, bool]:
    """The run, once the headers and so many words have come, and whether that was all; no words, not even headers."""
    if words == 0:
        await asyncio.sleep(random.uniform(0, 0.05))
        return None, False
    head = await reader.readuntil(b"\r\n\r\n")
    (run_id,) = (line[10:].decode().strip() for line in head.split(b"\r\n") if line.lower().startswith(b"x-run-id:"))
    while words and (line := await reader.readline()):
        if line == b"0\r\n":  # the last chunk
            return run_id, True
        words -= line.startswith(b"word")
    return run_id, False


def _go(writer: asyncio.StreamWriter) -> None:
    """Close the connection, or crash."""
    if random.random() < 0.5:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def _served(place: Place) -> AsyncIterator[int]:
    """The application on uvicorn, which leaves in order at the end."""
    port = free_port()
    process = _started(place, port)
    try:
        await until(lambda: process.poll() is not None or _listens(port), 30)
        assert process.poll() is None, "the server did not start"
        yield port
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _started(place: Place, port: int) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKEINO_")}
    settings = {
        "SKEINO_CHECKPOINTER_SCHEME": place.scheme,
        "SKEINO_CHECKPOINTER_URI": place.uri,
        "SKEINO_LEASE_SECONDS": str(LEASE),
    }
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--lifespan", "on", "--log-level", "critical"]
    return subprocess.Popen(
        [*command, "tests.chaos.streaming:app"],
        cwd=Path(__file__).parents[2],
        env={**kept, **settings},
        start_new_session=True,
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
