"""Each operation of a request fails once, before it is carried out or after: its run is told of as it was.

A request works a graph, on a thread of its own. The n-th operation of it fails, for each n until there are no more, and
then that and the next ones, which drivers do not make good themselves: on SQLite the disk fails, on the others the
connection is reset, by a proxy. Nothing is opened anew in between.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar

from rich.console import Console
from rich.table import Table

from skeino import SkeinoSettings, StoreError
from skeino.persistence import SqliteMetadataStore
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.graphs import compiled
from tests.chaos import fleet as fleets
from tests.chaos.fleet import Fleet, until
from tests.chaos.table import table_of
from tests.servers.proxy import Fault, is_operation, proxy_to, through

T = TypeVar("T")
When = Literal["before", "after"]

WORDS: Final = ["hello", "echo hello"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 10)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return {**fleets.on_each(arguments, console, fail), "lease_seconds": 0}


def table(result: dict[str, Any]) -> Table:
    return table_of("Operations that fail, before they are carried out and after", result)


async def fail(fleet: Fleet, times: int, bursts: Sequence[int] = (1, 3)) -> dict[str, Any]:
    """Go through all points so often, with so many failures in a row."""
    faults = Faults(fleet.place.scheme)
    place = replace(fleet.place, lease=0.0)
    with contextlib.ExitStack() as stack:
        if place.scheme != "sqlite":
            proxy = stack.enter_context(proxy_to(place.uri, faults))
            place = replace(place, uri=through(proxy.port, place.scheme, place.uri))
        tracker = RunTracker(SkeinoSettings(**place.settings()))
        async with tracker.lifespan():
            if isinstance(store := tracker.metadata_store, SqliteMetadataStore):
                _let_the_disk_fail(store, faults)
            requests = Requests(fleet, tracker, faults)
            for _, burst in itertools.product(range(times), bursts):
                await requests.go_through("before", burst)
                await requests.go_through("after", burst)
    return requests.result


class Faults:
    """Lets operations fail, from the n-th from now on."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._before = self._failing = 0
        self._when: When = "before"
        self.has_landed = False

    def arm(self, when: When, point: int, burst: int) -> None:
        self._when, self._before, self._failing, self.has_landed = when, point - 1, burst, False

    def disarm(self) -> None:
        self._failing = 0

    def of_next(self) -> When | None:
        """Whether and when the operation fails that is about to be done."""
        if self._failing == 0:
            return None
        if self._before:
            self._before -= 1
            return None
        self._failing -= 1
        self.has_landed = True
        return self._when

    def __call__(self, piece: bytes) -> Fault | None:
        when = self.of_next() if is_operation(self._scheme, piece) else None
        return None if when is None else "unsent" if when == "before" else "unanswered"


class Requests:
    """Requests to an application that works a graph, and what has become of them."""

    def __init__(self, fleet: Fleet, tracker: RunTracker, faults: Faults) -> None:
        self._fleet = fleet
        self._tracker = tracker
        self._faults = faults
        self._graph = compiled(tracker.checkpointer)
        self._app = RunMiddleware(self._serve, tracker=tracker)
        self._numbers = itertools.count()
        self.result: dict[str, Any] = {
            "failed_before": 0,
            "failed_after": 0,
            "requests_served": 0,
            "requests_refused": 0,
            "graphs_failed": 0,
            "lost_doubled_or_contradicted": 0,
            "failures": [],
        }

    async def go_through(self, when: When, burst: int) -> None:
        """One request for each point, until one has fewer operations."""
        for point in itertools.count(1):
            self._faults.arm(when, point, burst)
            name = f"r{next(self._numbers)}"
            status = await self._answer(name, names_thread=burst == 1)
            await until(lambda: not self._tracker.openings.here()._ends, 10)
            self._faults.disarm()
            for wrong in await self._wrong(name, status):
                self.result["lost_doubled_or_contradicted"] += 1
                what = f"operation {point} failed {when} it was done, {burst} in a row, status {status}"
                self.result["failures"].append(f"{what}: {wrong}")
            if not self._faults.has_landed:
                if status != 200:
                    self.result["failures"].append(f"nothing fails any more, and a request is answered with {status}")
                return
            self.result[f"failed_{when}"] += 1
            self.result[{200: "requests_served", 503: "requests_refused"}.get(status, "graphs_failed")] += 1

    async def _answer(self, name: str, *, names_thread: bool) -> int:
        """The status; 500 if the application raises, as a server would have it."""
        headers = [(b"x-request-id", name.encode())]
        if names_thread:
            headers.append((b"x-thread-id", name.encode()))
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self._app(scope, receive, send)
        except StoreError:
            return 500
        status: int = sent[0]["status"]
        return status

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await self._graph.ainvoke({"words": WORDS[:1]}, scope["state"]["run"].config)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def _wrong(self, name: str, status: int) -> list[str]:
        rows = await self._fleet.store.search_runs(metadata={"request_id": name})
        expected = ["success"] if status == 200 else ["error"]
        wrong = []
        if [row["status"] for row in rows] != expected and (status != 503 or rows):
            wrong.append(f"the runs are {[(row['status'], row['error']) for row in rows]}")
        if late := [row["late_outcome"] for row in rows if row["late_outcome"] is not None]:
            wrong.append(f"an end was taken for late: {late}")
        thread_id = next((row["thread_id"] for row in rows if row["thread_id"] is not None), name)
        state = await self._graph.aget_state({"configurable": {"thread_id": thread_id}})
        words = state.values.get("words", [])
        if words != WORDS[: len(words)] or (status == 200 and words != WORDS) or (status == 503 and words):
            wrong.append(f"the state is {words}")
        return wrong


def _let_the_disk_fail(store: SqliteMetadataStore, faults: Faults) -> None:
    """On the connections that the store and the saver share."""
    database: Any = store._database
    database._connection = FailingConnection(database._connection, faults)
    connect = database._readers._connect
    database._readers._connect = lambda: FailingConnection(connect(), faults)


class FailingConnection:
    """A connection whose statements may fail as by the disk."""

    def __init__(self, connection: sqlite3.Connection, faults: Faults) -> None:
        self._connection = connection
        self._faults = faults

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self._done(lambda: self._connection.execute(*arguments))

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self._done(lambda: self._connection.executemany(*arguments))

    def _done(self, statement: Callable[[], T]) -> T:
        when = self._faults.of_next()
        if when == "before":
            raise _disk_failure()
        done = statement()
        if when == "after":
            raise _disk_failure()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _disk_failure() -> sqlite3.OperationalError:
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorname = "SQLITE_IOERR"
    return failure
