"""Points at which a process can be stopped: before each statement or command that a driver sends to its database."""

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pymongo.monitoring

_CONNECTING = ("hello", "ismaster", "isMaster", "ping", "endSessions", "saslStart", "saslContinue")


class Failpoints:
    """Counts the points that the process comes to, and stops it for good at one of them, to be killed there."""

    def __init__(self, scheme: str, stop_at: int | None, stopped: Callable[[], object]) -> None:
        self.passed = 0
        self._stop_at = stop_at
        self._stopped = stopped
        {"sqlite": self._watch_sqlite, "postgres": self._watch_postgres, "mongodb": self._watch_mongodb}[scheme]()

    def point(self) -> None:
        self.passed += 1
        if self.passed == self._stop_at:
            self._stopped()
            time.sleep(3600)

    def _watch_sqlite(self) -> None:
        plain, point = sqlite3.connect, self.point

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = plain(*arguments, **options)
            connection.set_trace_callback(lambda _: point())
            return connection

        sqlite3.connect = connect  # type: ignore[assignment]

    def _watch_postgres(self) -> None:
        execute, leave, point = psycopg.AsyncCursor.execute, psycopg.AsyncTransaction.__aexit__, self.point

        async def watched_execute(self: Any, *arguments: Any, **options: Any) -> Any:
            point()
            return await execute(self, *arguments, **options)

        async def watched_leave(self: Any, *arguments: Any) -> Any:  # COMMIT is no statement of a cursor's
            point()
            return await leave(self, *arguments)

        psycopg.AsyncCursor.execute = watched_execute  # type: ignore[method-assign]
        psycopg.AsyncTransaction.__aexit__ = watched_leave  # type: ignore[assignment,method-assign]

    def _watch_mongodb(self) -> None:
        point = self.point

        class Listener(pymongo.monitoring.CommandListener):
            def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
                if event.command_name not in _CONNECTING:
                    point()

            def succeeded(self, event: pymongo.monitoring.CommandSucceededEvent) -> None:
                pass

            def failed(self, event: pymongo.monitoring.CommandFailedEvent) -> None:
                pass

        pymongo.monitoring.register(Listener())
