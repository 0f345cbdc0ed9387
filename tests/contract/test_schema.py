"""Schemas: made, verified, too new, incomplete."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from skeino import SkeinoSettings
from skeino.errors import SchemaError
from skeino.persistence import open_persistence
from skeino.persistence.schema import read_schema
from skeino.testing import finished, the_run
from tests.contract.backends import SQL, settings_of


@pytest.fixture(params=SQL)
def sql_settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """Of the backends whose tables can be missing: a collection that MongoDB does not have is an empty one."""
    return settings_of(request, tmp_path)


def without_setup(settings: SkeinoSettings) -> SkeinoSettings:
    return settings.model_copy(update={"checkpointer_options": {"setup_schema": False}})


def execute(settings: SkeinoSettings, statement: str) -> None:
    """One statement, past skeino."""
    assert settings.checkpointer_uri is not None
    if settings.checkpointer_scheme == "sqlite":
        connection = sqlite3.connect(settings.checkpointer_uri)
        try:
            connection.execute(statement)
            connection.commit()
        finally:
            connection.close()
    else:
        with psycopg.connect(settings.checkpointer_uri) as server:
            server.execute(statement.encode())


@contextmanager
def mongodb(settings: SkeinoSettings) -> Iterator[Database[Any]]:
    """The settings' database, past skeino."""
    with MongoClient[Any](settings.checkpointer_uri) as client:
        yield client.get_default_database()


def set_version(settings: SkeinoSettings, version: int, compatible_from: int) -> None:
    if settings.checkpointer_scheme == "mongodb":
        with mongodb(settings) as database:
            recorded = {"version": version, "compatible_from": compatible_from}
            database["app_schema"].update_one({}, {"$set": recorded})
    else:
        execute(settings, f"UPDATE app_schema SET version = {version}, compatible_from = {compatible_from}")


async def test_a_prepared_database_needs_no_set_up(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings):
        pass
    async with open_persistence(without_setup(durable_settings)) as persistence:
        run_id = await finished(persistence.metadata_store, "t")
        assert (await the_run(persistence.metadata_store, run_id))["status"] == "success"
        assert await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "t"}}) is None


async def test_opening_again_and_again_leaves_one_version(durable_settings: SkeinoSettings) -> None:
    for _ in range(3):
        async with open_persistence(durable_settings):
            pass
    if durable_settings.checkpointer_scheme == "mongodb":
        with mongodb(durable_settings) as database:
            assert database["app_schema"].count_documents({}) == 1
        return
    execute(durable_settings, "CREATE UNIQUE INDEX one_row ON app_schema ((1))")
    execute(durable_settings, "DROP INDEX one_row")


async def test_a_schema_newer_than_the_code_and_not_compatible_is_refused(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings) as persistence:
        await finished(persistence.metadata_store, "t")
    set_version(durable_settings, 99, 98)
    try:
        for settings in (durable_settings, without_setup(durable_settings)):
            with pytest.raises(SchemaError, match=r"version 99.* knows 1.*newer"):
                async with open_persistence(settings):
                    pass
    finally:
        set_version(durable_settings, 1, 1)
    async with open_persistence(durable_settings) as persistence:
        assert len(await persistence.metadata_store.search_runs()) == 1


async def test_a_schema_newer_than_the_code_and_compatible_is_used(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings):
        pass
    set_version(durable_settings, 99, 1)
    try:
        for settings in (durable_settings, without_setup(durable_settings)):
            async with open_persistence(settings) as persistence:
                await finished(persistence.metadata_store, "t")
        state = await read_schema(durable_settings)
        assert (state.version, state.compatible_from) == (99, 1)
    finally:
        set_version(durable_settings, 1, 1)


async def test_an_older_schema_is_brought_up_to_date_only_by_the_set_up(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings):
        pass
    if durable_settings.checkpointer_scheme == "mongodb":
        with mongodb(durable_settings) as database:
            for collection in ("app_runs", "app_threads", "app_workers", "app_sweeps", "app_schema"):
                database[collection].drop()
    else:
        of_sqlite = ["DROP TABLE app_threads_metadata", "DROP TABLE app_runs_metadata"]
        for statement in (
            *(of_sqlite if durable_settings.checkpointer_scheme == "sqlite" else ()),
            "DROP TABLE app_runs",
            "DROP TABLE app_threads",
            "DROP TABLE app_workers",
            "DROP TABLE app_sweeps",
            "DELETE FROM app_schema",
        ):
            execute(durable_settings, statement)
    with pytest.raises(SchemaError, match="app_threads, app_runs, app_workers, app_sweeps"):
        async with open_persistence(without_setup(durable_settings)):
            pass
    async with open_persistence(durable_settings) as persistence:
        await finished(persistence.metadata_store, "t")


async def test_an_empty_database_without_set_up_names_what_is_missing(postgres_dsn: str) -> None:
    settings = SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=postgres_dsn)
    with pytest.raises(SchemaError) as refused:
        async with open_persistence(without_setup(settings)):
            pass
    for table in ("checkpoint_migrations", "checkpoints", "checkpoint_blobs", "checkpoint_writes", "app_schema"):
        assert table in str(refused.value)
    assert "app_threads, app_runs" in str(refused.value)
    assert "setup_schema=True" in str(refused.value)
    with psycopg.connect(postgres_dsn) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)


async def test_an_empty_mongodb_database_without_set_up_names_what_is_missing(mongodb_uri: str) -> None:
    settings = SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=mongodb_uri)
    with pytest.raises(
        SchemaError,
        match=r"checkpoints, checkpoint_writes, app_schema, app_threads, app_runs, app_workers, app_sweeps: .*True",
    ):
        async with open_persistence(without_setup(settings)):
            pass
    with mongodb(settings) as database:
        assert database.list_collection_names() == []


async def test_an_empty_file_without_set_up_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    settings = without_setup(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(path)))
    with pytest.raises(SchemaError, match=r"no file .*skeino\.db"):
        async with open_persistence(settings):
            pass
    assert not path.exists()
    path.touch()
    with pytest.raises(SchemaError, match="checkpoints, writes, app_schema, app_threads, app_runs, app_workers"):
        async with open_persistence(settings):
            pass
    assert path.read_bytes()[100:] == b"" or b"app_runs" not in path.read_bytes()


async def test_a_table_that_vanishes_is_a_schema_error(sql_settings: SkeinoSettings) -> None:
    async with open_persistence(sql_settings) as persistence:
        execute(sql_settings, "ALTER TABLE app_runs RENAME TO hidden")
        try:
            with pytest.raises(SchemaError):
                await persistence.metadata_store.search_runs()
            with pytest.raises(SchemaError):
                await finished(persistence.metadata_store)
        finally:
            execute(sql_settings, "ALTER TABLE hidden RENAME TO app_runs")
        await finished(persistence.metadata_store, "t")
