"""Workers of one database: processes to kill, stop and hinder, and what they said before."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, RunRow, open_persistence
from tests.chaos import worker, wrong_clock
from tests.chaos.worker import Load
from tests.servers import mongodb, postgres

SCHEMES = ("sqlite", "postgres", "mongodb")
LEASE = 2.0
"""Seconds."""

# Forked from a process that has imported everything: a start takes no longer than opening the database.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.preloaded"])
_spawns = multiprocessing.get_context("spawn")  # which imports the clock first


@dataclass(frozen=True)
class Place:
    """A database that can go away."""

    scheme: str
    uri: str
    go_away: Callable[[], None]
    come_back: Callable[[], None]
    lease: float = LEASE
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Of `SkeinoSettings`."""
        return {
            "checkpointer_scheme": self.scheme,
            "checkpointer_uri": self.uri,
            "checkpointer_options": {**self.options},
            "lease_seconds": self.lease,
        }


@contextmanager
def place_of(scheme: str, server: Any = None) -> Iterator[Place]:
    """A new database, on this server if it is given; SQLite's goes away by being locked."""
    if scheme == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "skeino.db"
            lock = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
            path.chmod(0o600)
            with contextlib.closing(lock):
                yield Place(
                    scheme, str(path), lambda: _execute(lock, "BEGIN EXCLUSIVE"), lambda: _execute(lock, "ROLLBACK")
                )
    elif server is not None:
        yield Place(scheme, server.create_database(), server.stop, server.start)
    else:
        started: Any = (
            postgres.start_postgres(postgres.find_postgres(local=True))
            if scheme == "postgres"
            else mongodb.start_mongodb(mongodb.find_mongodb(local=True))
        )
        with started as local:
            yield Place(scheme, local.create_database(), local.stop, local.start)


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)


class Worker:
    """A worker's process, and what it has said."""

    def __init__(self, load: Load, *, wrong_clock_: bool = False) -> None:
        orders, self._orders = multiprocessing.Pipe(duplex=False)
        self._events, events = multiprocessing.Pipe(duplex=False)
        if wrong_clock_:
            self.process: Any = _spawns.Process(target=wrong_clock.work, args=(asdict(load), orders, events))
        else:
            self.process = _forks.Process(target=worker.work, args=(load, orders, events))
        self.process.start()
        orders.close()
        events.close()
        self.worker_id = ""
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        """Run ids, with the time at which it said so."""
        self.failures: list[str] = []
        self.unsteady = 0
        """How often its heartbeat began to fail."""
        self.has_left = False
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._listen)

    def _listen(self) -> None:
        try:
            while self._events.poll():
                event, *rest = self._events.recv()
                self._heard(event, *rest)
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._gone.set()
            self._ready.set()

    def _heard(self, event: str, value: str = "") -> None:
        match event:
            case "ready":
                self.worker_id = value
                self._ready.set()
            case "started":
                self.started[value] = time.time()
            case "ended":
                self.ended[value] = time.time()
            case "failed":
                self.failures.append(value)
            case "logged":
                self.unsteady += "The heartbeat of" in value
            case "left":
                self.has_left = True
            case _:
                raise AssertionError(event)

    @property
    def active(self) -> set[str]:
        """The runs of which it has said that they have started, and not yet that they have ended."""
        return self.started.keys() - self.ended.keys()

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            await self._ready.wait()
        assert self.worker_id, "it died before it had opened"

    async def has(self, number: int) -> None:
        """Wait until so many runs are active."""
        await until(lambda: len(self.active) >= number, 30)

    def tell(self, *order: Any) -> None:
        self._orders.send(order)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        """Kill it, and hear all that it had said."""
        self.signal(signal.SIGKILL)
        await self.gone()

    async def gone(self) -> None:
        async with asyncio.timeout(60):
            await self._gone.wait()
        await asyncio.to_thread(self.process.join)
        self.process.close()
        self._events.close()
        self._orders.close()


class Fleet:
    """The workers of one database, and a look at what is in it."""

    def __init__(self, place: Place, store: MetadataStoreProtocol) -> None:
        self.place = place
        self.store = store
        self.all: list[Worker] = []

    async def start(self, number: int = 1, *, wrong_clock_: bool = False, **load: Any) -> list[Worker]:
        """So many more workers, open."""
        settings = self.place.settings()
        new = [Worker(Load(settings, **load), wrong_clock_=wrong_clock_) for _ in range(number)]
        self.all += new
        await asyncio.gather(*(one.ready() for one in new))
        return new

    async def rows(self, run_ids: Iterable[str]) -> dict[str, RunRow]:
        ids = list(run_ids)
        found: dict[str, RunRow] = {}
        for begin in range(0, len(ids), 500):
            some = await self.store.search_runs(ids=ids[begin : begin + 500], limit=500)
            found |= {row["run_id"]: row for row in some}
        return found

    async def all_rows(self) -> dict[str, RunRow]:
        found: dict[str, RunRow] = {}
        while page := await self.store.search_runs(sort_by="run_id", sort_order="asc", limit=1000, offset=len(found)):
            found |= {row["run_id"]: row for row in page}
        return found

    async def active_of(self, workers: Iterable[Worker]) -> list[RunRow]:
        """The runs that the database has as active, of these workers."""
        ids = {one.worker_id for one in workers}
        rows = await self.store.search_runs(status=["pending", "running"], limit=1000)
        return [row for row in rows if row["worker_id"] in ids]

    async def leave(self) -> None:
        """Let all that live leave in order."""
        living = [one for one in self.all if not one._gone.is_set()]
        for one in living:
            one.tell("leave")
        await asyncio.gather(*(one.gone() for one in living))

    def end(self) -> None:
        """Leave nothing running, whatever has happened."""
        for one in self.all:
            if not one._events.closed:
                with contextlib.suppress(ProcessLookupError, ValueError):
                    one.signal(signal.SIGKILL)
                    one.process.join()


@asynccontextmanager
async def fleet_at(place: Place) -> AsyncIterator[Fleet]:
    """No workers yet, on an empty database."""
    async with open_persistence(SkeinoSettings(**place.settings())) as persistence:
        fleet = Fleet(place, persistence.metadata_store)
        try:
            yield fleet
        finally:
            fleet.end()


async def until(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait until it holds, or its time is over; whether it holds."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if await held if isinstance(held, Awaitable) else held:
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)


def is_lost(row: RunRow) -> bool:
    """Whether the run was ended because its worker was counted as dead."""
    return row["error"] is not None and row["error"]["code"] == "worker_lost"


def somewhere(least: float, most: float) -> float:
    return random.uniform(least, most)


def add_arguments(parser: argparse.ArgumentParser, times: int, schemes: Sequence[str] = SCHEMES) -> None:
    parser.add_argument("--scheme", action="append", choices=schemes, help="only on this; may be given several times")
    parser.add_argument("--times", type=int, default=times, help=f"how often, on each (default {times})")


def on_each(
    arguments: argparse.Namespace,
    console: Console,
    harness: Callable[[Fleet, int], Awaitable[dict[str, Any]]],
    schemes: Sequence[str] = SCHEMES,
) -> dict[str, Any]:
    """The harness's figures on each scheme, and what went wrong anywhere."""
    results: dict[str, Any] = {"lease_seconds": LEASE, "schemes": {}, "failures": []}
    for scheme in arguments.scheme or schemes:
        with console.status(f"{arguments.harness}, {scheme}"), place_of(scheme) as place:
            figures = asyncio.run(_once(place, arguments.times, harness))
        results["failures"] += [f"{scheme}: {sentence}" for sentence in figures.pop("failures")]
        results["schemes"][scheme] = figures
    return results


async def _once(place: Place, times: int, harness: Callable[[Fleet, int], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    async with fleet_at(place) as fleet:
        return await harness(fleet, times)
