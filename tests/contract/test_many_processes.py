"""Real processes that start together, as the workers of one server do, and a database that has nothing yet."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from skeino.persistence.mongodb.schema import INDEXES

NUMBER = 24


def opened_by_many(scheme: str, uri: str) -> list[str | None]:
    """What went wrong in each process; None where all went well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.contract.many_processes", scheme, uri, str(NUMBER)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_a_fresh_file_is_opened_by_many_processes_at_once(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "skeino.db"
    assert opened_by_many("sqlite", str(path)) == [None] * NUMBER
    connection = sqlite3.connect(path)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        ours = {"app_schema", "app_threads", "app_runs", "app_workers", "app_sweeps"}
        assert {"checkpoints", "writes", *ours} <= tables
        assert connection.execute("SELECT count(*), max(version) FROM app_schema").fetchone() == (1, 1)
        assert connection.execute("SELECT count(*) FROM app_runs").fetchone() == (NUMBER,)
        assert connection.execute("SELECT count(*) FROM app_threads").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_a_fresh_database_is_opened_by_many_processes_at_once(postgres_dsn: str, attempt: int) -> None:
    assert opened_by_many("postgres", postgres_dsn) == [None] * NUMBER
    check_postgres(postgres_dsn)


@pytest.mark.slow
def test_a_fresh_database_is_opened_by_many_processes_through_a_pooler(postgres_dsn: str, pgbouncer_dsn: str) -> None:
    assert opened_by_many("postgres", pgbouncer_dsn) == [None] * NUMBER
    check_postgres(postgres_dsn)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_a_fresh_mongodb_database_is_opened_by_many_processes_at_once(mongodb_uri: str, attempt: int) -> None:
    assert opened_by_many("mongodb", mongodb_uri) == [None] * NUMBER
    with MongoClient[Any](mongodb_uri) as client:
        database = client.get_default_database()
        ours = {"app_schema", "app_threads", "app_runs", "app_workers", "app_sweeps"}
        assert set(database.list_collection_names()) == {"checkpoints", "checkpoint_writes", *ours}
        assert [one["version"] for one in database["app_schema"].find()] == [1]
        assert database["app_runs"].count_documents({}) == NUMBER
        assert database["app_threads"].count_documents({}) == 1
        names = {"_id_", *(index.document["name"] for index in INDEXES["app_runs"])}
        assert database["app_runs"].index_information().keys() == names
        assert len(database["checkpoints"].index_information()) == 2


def check_postgres(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        assert tables == {
            "checkpoint_migrations",
            "checkpoints",
            "checkpoint_blobs",
            "checkpoint_writes",
            "app_schema",
            "app_threads",
            "app_runs",
            "app_workers",
            "app_sweeps",
        }
        assert connection.execute("SELECT count(*), max(version) FROM app_schema").fetchone() == (1, 1)
        assert connection.execute("SELECT count(*) FROM app_runs").fetchone() == (NUMBER,)
        assert connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone() == (0,)
        locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert locks == (0,), "the set-up's lock was left behind"
