"""PostgreSQL's schema: what LangGraph's own set-up leaves half made, roles that may little, servers that go on."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import errors, sql

from skeino import SkeinoSettings
from skeino.errors import SchemaError
from skeino.persistence import open_persistence
from skeino.persistence.schema import read_schema
from skeino.testing import finished
from tests.contract.test_postgres_server import PASSWORD, role_without_create
from tests.contract.test_schema import without_setup
from tests.servers.postgres import PostgresServer

INDEX = "checkpoints_thread_id_idx"
BEFORE_THE_INDEX = next(number for number, one in enumerate(AsyncPostgresSaver.MIGRATIONS) if INDEX in one)
HALF_MADE = f"SELECT indexrelid FROM pg_index WHERE indexrelid = to_regclass('{INDEX}') AND NOT indisvalid"


def settings_for(dsn: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=dsn)


async def opened(dsn: str) -> None:
    async with open_persistence(settings_for(dsn)) as persistence:
        await finished(persistence.metadata_store, "t")


def one(dsn: str, statement: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def langgraphs_first_migrations(dsn: str) -> None:
    """As far as LangGraph comes before its first index."""
    for number, migration in enumerate(AsyncPostgresSaver.MIGRATIONS[:BEFORE_THE_INDEX]):
        one(dsn, migration)
        one(dsn, f"INSERT INTO checkpoint_migrations VALUES ({number})")


@contextmanager
def a_writer_who_does_not_commit(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Whom `CREATE INDEX CONCURRENTLY` waits for."""
    with psycopg.connect(dsn) as writer:
        writer.execute("INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('x', '1', '{}')")
        yield writer


@pytest.mark.parametrize("recorded", [False, True])
async def test_an_index_of_langgraphs_that_was_left_half_made_is_made_anew(postgres_dsn: str, recorded: bool) -> None:
    langgraphs_first_migrations(postgres_dsn)
    with a_writer_who_does_not_commit(postgres_dsn), psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("SET statement_timeout = '100ms'")
        with pytest.raises(errors.QueryCanceled):
            connection.execute(AsyncPostgresSaver.MIGRATIONS[BEFORE_THE_INDEX].encode())
    if recorded:
        one(postgres_dsn, f"INSERT INTO checkpoint_migrations VALUES ({BEFORE_THE_INDEX})")
    is_valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{INDEX}'::regclass"
    assert one(postgres_dsn, is_valid) is False
    state = await read_schema(settings_for(postgres_dsn))
    assert f"{INDEX} (half made)" in state.missing
    with pytest.raises(SchemaError, match="half made"):
        async with open_persistence(without_setup(settings_for(postgres_dsn))):
            pass
    await opened(postgres_dsn)
    assert one(postgres_dsn, is_valid) is True
    assert (await read_schema(settings_for(postgres_dsn))).lacking is None


START = """
import asyncio, sys
from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino.persistence.postgres import schema

async def start():
    async with open_persistence(SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=sys.argv[1])):
        pass

if len(sys.argv) > 2:
    schema.MIGRATIONS, schema.COMPATIBLE_FROM = (*schema.MIGRATIONS, sys.argv[2]), (1, 2)
asyncio.run(start())
"""


@contextmanager
def a_process_that_starts(dsn: str, waits_in: str, *migration: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Until its server process is in that statement."""
    command = [sys.executable, "-W", "ignore", "-c", START, dsn, *migration]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 20
        seen = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name = 'skeino' AND query ~ '{waits_in}'"  # noqa: E501
        while not one(dsn, seen):
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_server_process_that_goes_on_with_an_index_of_a_killed_start_is_waited_for(postgres_dsn: str) -> None:
    langgraphs_first_migrations(postgres_dsn)
    with a_writer_who_does_not_commit(postgres_dsn) as writer:
        with a_process_that_starts(postgres_dsn, "INDEX CONCURRENTLY"):
            pass
        starts = [asyncio.create_task(opened(postgres_dsn)) for _ in range(2)]
        await asyncio.sleep(1.5)  # longer than PostgreSQL takes to see a deadlock
        assert not any(start.done() for start in starts)
        writer.rollback()
        await asyncio.gather(*starts)
    assert (await read_schema(settings_for(postgres_dsn))).lacking is None
    assert one(postgres_dsn, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


async def test_a_migration_whose_process_is_killed_is_stopped_by_the_server(postgres_dsn: str) -> None:
    await opened(postgres_dsn)
    with a_process_that_starts(postgres_dsn, "pg_sleep", "CREATE TABLE app_extra (a integer); SELECT pg_sleep(60)"):
        pass
    deadline = time.monotonic() + 5
    while one(postgres_dsn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"):
        assert time.monotonic() < deadline, "the lock is still held"
        await asyncio.sleep(0.05)
    assert one(postgres_dsn, "SELECT to_regclass('app_extra') IS NULL")
    await opened(postgres_dsn)


async def test_a_role_whose_transactions_keep_their_snapshot_can_set_up(postgres_dsn: str) -> None:
    one(postgres_dsn, "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || "
        "' SET default_transaction_isolation = ''repeatable read'''; END $$")  # fmt: skip
    assert one(postgres_dsn, "SHOW default_transaction_isolation") == "repeatable read"
    async with asyncio.timeout(10):
        await opened(postgres_dsn)
    assert (await read_schema(settings_for(postgres_dsn))).lacking is None


async def test_a_role_without_create_is_told_what_is_missing_and_which_command_makes_it(postgres_dsn: str) -> None:
    with role_without_create(postgres_dsn) as dsn:
        with pytest.raises(SchemaError) as refused:
            await opened(dsn)
        assert str(refused.value) == (
            f"The role 'modest' may not CREATE tables in the database {dsn.rpartition('/')[2]!r} "
            "(InsufficientPrivilege), which lacks checkpoint_migrations, checkpoints, checkpoint_blobs, "
            "checkpoint_writes, app_schema, app_threads, app_runs, app_workers, app_sweeps: run python -m skeino "
            "schema --apply as a role that may, or the SQL that python -m skeino schema --print shows; then let "
            "'modest' use the tables."
        )
        assert PASSWORD not in str(refused.value)


async def test_a_search_path_that_leads_nowhere_is_told(postgres_server: PostgresServer, postgres_dsn: str) -> None:
    with pytest.raises(SchemaError, match=r"may not CREATE tables .*InvalidSchemaName"):
        await opened(f"{postgres_dsn}?options=-c%20search_path%3Dnowhere")


async def test_tables_of_somebody_else_are_not_taken_for_skeinos(postgres_dsn: str) -> None:
    one(postgres_dsn, "CREATE TABLE app_runs (mine integer)")
    with pytest.raises(SchemaError, match="tables app_runs that no version of the schema is recorded for: move them"):
        await opened(postgres_dsn)


async def test_a_table_that_was_dropped_is_not_passed_over(postgres_dsn: str) -> None:
    await opened(postgres_dsn)
    one(postgres_dsn, "DROP TABLE app_runs")
    with pytest.raises(SchemaError, match="says that it has schema version 1, but lacks app_runs: restore"):
        await opened(postgres_dsn)


async def test_a_start_with_all_in_place_makes_nothing_and_takes_no_lock(postgres_dsn: str) -> None:
    await opened(postgres_dsn)
    with psycopg.connect(postgres_dsn) as other:
        other.execute(sql.SQL("SELECT pg_advisory_xact_lock(x'736B65696E6F'::bigint)"))
        async with asyncio.timeout(5):
            await opened(postgres_dsn)


async def test_an_index_that_another_process_is_making_is_waited_for(postgres_dsn: str) -> None:
    langgraphs_first_migrations(postgres_dsn)
    async with AsyncPostgresSaver.from_conn_string(postgres_dsn) as saver:
        with a_writer_who_does_not_commit(postgres_dsn) as writer:
            theirs = asyncio.create_task(saver.setup())
            async with asyncio.timeout(10):
                while not (index := one(postgres_dsn, HALF_MADE)):
                    await asyncio.sleep(0.01)
            ours = asyncio.create_task(opened(postgres_dsn))
            await asyncio.sleep(2)  # PostgreSQL ends a deadlock after one
            assert not theirs.done()
            assert not ours.done()
            writer.rollback()
        await asyncio.gather(theirs, ours)
    assert one(postgres_dsn, f"SELECT '{INDEX}'::regclass::oid") == index, "it was made twice"
    assert (await read_schema(settings_for(postgres_dsn))).lacking is None


async def test_a_vacuum_is_no_index_in_the_making(postgres_dsn: str) -> None:
    await opened(postgres_dsn)
    one(postgres_dsn, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass")
    with psycopg.connect(postgres_dsn) as vacuuming:
        vacuuming.execute("LOCK TABLE checkpoints IN SHARE UPDATE EXCLUSIVE MODE")
        ours = asyncio.create_task(opened(postgres_dsn))
        async with asyncio.timeout(10):
            while not one(postgres_dsn, "SELECT pid FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    await ours
    assert (await read_schema(settings_for(postgres_dsn))).lacking is None


async def test_langgraphs_own_set_up_by_others_at_the_same_time_does_no_harm(postgres_server: PostgresServer) -> None:
    async def stock(dsn: str) -> None:
        with suppress(errors.Error):  # unguarded, most of them fail
            async with AsyncPostgresSaver.from_conn_string(dsn) as saver:
                await saver.setup()

    for _ in range(5):
        dsn = postgres_server.create_database()
        try:
            await asyncio.gather(opened(dsn), *(stock(dsn) for _ in range(4)))
            assert (await read_schema(settings_for(dsn))).lacking is None
        finally:
            postgres_server.drop_database(dsn)
