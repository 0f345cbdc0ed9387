"""The databases that are harassed: empty ones of a scheme's server, and what is wrong in one, looked at past skeino."""

import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
from pymongo import MongoClient

from tests.servers import mongodb, postgres
from tests.servers.mongodb import MongoServer
from tests.servers.postgres import PostgresServer

SCHEMES = ("sqlite", "postgres", "mongodb")

RUNS, NOTED = "SELECT count(*) FROM app_runs", "SELECT count(*) FROM app_runs WHERE note = 'old'"
VERSIONS = "SELECT version, compatible_from FROM app_schema"


class Place(Protocol):
    """Where the databases of one scheme are made."""

    scheme: str
    software: str

    def empty(self) -> str:
        """The URI of a new database."""

    def drop(self, uri: str) -> None: ...

    def found(self, uri: str, *, noted: bool) -> dict[str, Any]:
        """`versions`: what is recorded; `runs`: how many rows; `noted`: those that a made-up version has changed;
        `wrong`: what must not be, in words.
        """


@contextmanager
def place_of(scheme: str) -> Iterator[Place]:
    """A place, its server started for it."""
    if scheme == "sqlite":
        with tempfile.TemporaryDirectory(prefix="skeino-chaos-") as folder:
            yield SqlitePlace(Path(folder))
    elif scheme == "postgres":
        with postgres.running_postgres(postgres.find_postgres()) as server:
            yield PostgresPlace(server)
    else:
        with mongodb.running_mongodb(mongodb.find_mongodb()) as server:
            yield MongoPlace(server)


class SqlitePlace:
    scheme = "sqlite"
    software = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def empty(self) -> str:
        return str(self._folder / f"{secrets.token_hex(6)}.db")

    def drop(self, uri: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(uri + suffix).unlink(missing_ok=True)

    def found(self, uri: str, *, noted: bool) -> dict[str, Any]:
        with closing(sqlite3.connect(uri)) as connection:
            check = connection.execute("PRAGMA integrity_check").fetchall()
            return {
                "versions": connection.execute(VERSIONS).fetchall(),
                "runs": connection.execute(RUNS).fetchone()[0],
                "noted": connection.execute(NOTED).fetchone()[0] if noted else 0,
                "wrong": [] if check == [("ok",)] else [f"the file is not sound: {check}"],
            }


class PostgresPlace:
    scheme = "postgres"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.software = f"PostgreSQL {server.version}"

    def empty(self) -> str:
        return self._server.create_database()

    def drop(self, uri: str) -> None:
        self._server.drop_database(uri)

    def found(self, uri: str, *, noted: bool) -> dict[str, Any]:
        with psycopg.connect(uri) as connection:

            def one(statement: Any) -> Any:
                return (connection.execute(statement).fetchone() or (None,))[0]

            wrong = {
                "indexes were left half made": one("SELECT count(*) FROM pg_index WHERE NOT indisvalid"),
                "advisory locks were left": one(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
                    "(SELECT oid FROM pg_database WHERE datname = current_database())"
                ),
                "indexes of LangGraph's are missing": 3
                - one("SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'checkpoint%thread_id_idx'"),
            }
            return {
                "versions": connection.execute(VERSIONS).fetchall(),
                "runs": one(RUNS),
                "noted": one(NOTED) if noted else 0,
                "wrong": [f"{number} {what}" for what, number in wrong.items() if number],
            }


class MongoPlace:
    scheme = "mongodb"

    def __init__(self, server: MongoServer) -> None:
        self._server = server
        self.software = f"MongoDB {server.version}"

    def empty(self) -> str:
        return self._server.create_database()

    def drop(self, uri: str) -> None:
        self._server.drop_database(uri)

    def found(self, uri: str, *, noted: bool) -> dict[str, Any]:
        with MongoClient[dict[str, Any]](uri) as client:
            database = client.get_default_database()
            recorded = [*database["app_schema"].find()]
            unique = [
                any(index.get("unique") for index in database[name].index_information().values())
                for name in ("checkpoints", "checkpoint_writes")
            ]
            wrong = [] if all(unique) else ["LangGraph's indexes are missing"]
            wrong += [f"a step was left: {one}" for one in recorded if one["step"]]
            return {
                "versions": [(one["version"], one["compatible_from"]) for one in recorded],
                "runs": database["app_runs"].count_documents({}),
                "noted": database["app_runs"].count_documents({"note": "old"}) if noted else 0,
                "wrong": wrong,
            }
