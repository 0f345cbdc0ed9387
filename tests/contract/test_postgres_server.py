"""What is particular to PostgreSQL: a server that is away, refuses, forgets us, or has no room."""

import asyncio
import logging
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from skeino import SkeinoSettings
from skeino.errors import ConfigurationError, SchemaError, StoreUnavailableError
from skeino.persistence import MetadataStore, Persistence, open_persistence
from skeino.testing import everything, finished, started, the_thread
from tests.servers.postgres import LocalPostgresServer, PostgresServer, with_parameters
from tests.servers.process import free_port

PASSWORD = "hunter2-very-secret"


def settings_for(dsn: str, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=dsn, checkpointer_options=options)


async def fails_to_open(settings: SkeinoSettings) -> Exception:
    with pytest.raises(Exception) as failed:  # noqa: PT011 – the caller looks at it
        async with open_persistence(settings):
            pass
    return failed.value


def all_that_is_told(exc: BaseException | None) -> str:
    """The text of the error and of each one behind it, shown or suppressed."""
    told = []
    seen: set[int] = set()
    queue = [exc]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        told += [str(one), repr(one), repr(one.args), *traceback.format_exception(one)]
        queue += [one.__cause__, one.__context__]
    return "\n".join(told)


async def test_a_server_that_is_down_is_named_in_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    begin = time.monotonic()
    exc = await fails_to_open(settings_for(f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/mine"))
    assert time.monotonic() - begin < 5
    assert isinstance(exc, StoreUnavailableError)
    assert f"127.0.0.1:{port}/mine" in str(exc)
    assert "refused" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_server_that_is_silent_is_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the call, and nobody answers
        port = silent.getsockname()[1]
        begin = time.monotonic()
        exc = await fails_to_open(settings_for(f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/x", connect_timeout=1))
        assert 0.5 < time.monotonic() - begin < 4
    assert isinstance(exc, StoreUnavailableError)
    assert f"127.0.0.1:{port}" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_wrong_password_is_not_repeated(postgres_server: PostgresServer, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    exc = await fails_to_open(settings_for(with_parameters(postgres_server.dsn, password=PASSWORD)))
    assert isinstance(exc, StoreUnavailableError)
    assert f"{postgres_server.host}:{postgres_server.port}" in str(exc)
    assert "refused the user or the password" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://ann:{PASSWORD}@[::1/mine",
        f"postgresql://ann:{PASSWORD}%@host/mine",
        f"postgresql://ann:{PASSWORD}@host:port:5432/mine?nonsense={PASSWORD}",
        f"host=x password='{PASSWORD}",
        f"mysql://ann:{PASSWORD}@host/mine",
        f"ann:{PASSWORD}@host",
        f"ann:{PASSWORD}@host://mine",
        f"postgresql://ann:{PASSWORD}/x@127.0.0.1:9/mine",  # libpq takes these two, and cuts them in the password
        f"postgresql://ann:x@{PASSWORD}@127.0.0.1:9/mine",
    ],
)
async def test_a_malformed_dsn_is_not_repeated(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    exc = await fails_to_open(settings_for(dsn))
    assert isinstance(exc, ConfigurationError)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_database_that_does_not_exist_is_named(postgres_server: PostgresServer) -> None:
    exc = await fails_to_open(settings_for(with_parameters(postgres_server.dsn, dbname="nowhere")))
    assert isinstance(exc, StoreUnavailableError)
    assert "/nowhere" in str(exc)
    assert "no such database" in str(exc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_min_size": 5, "pool_max_size": 2}, "pool_min_size"),
        ({"pool_max_size": 0, "pool_min_size": 0}, "pool_max_size"),
        ({"pool_max_sice": 2}, "did you mean pool_max_size"),
        ({"pool_timeout": "5"}, "of type int or float, not str"),
        ({"pool_max_size": True}, "of type int, not bool"),
    ],
)
async def test_wrong_options_are_refused_before_connecting(options: dict[str, Any], message: str) -> None:
    exc = await fails_to_open(settings_for(f"postgresql://ann:{PASSWORD}@127.0.0.1:1/mine", **options))
    assert isinstance(exc, ConfigurationError)
    assert message in str(exc)


async def test_killed_connections_are_replaced_unnoticed(module_database: str) -> None:
    async with open_persistence(settings_for(module_database)) as persistence:
        for _ in range(5):
            await finished(persistence.metadata_store, "t")
            kill_connections(module_database)
            await finished(persistence.metadata_store, "t")
            kill_connections(module_database)
            assert await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "t"}}) is None


async def test_a_whole_pool_of_killed_connections_is_replaced_quickly(module_database: str) -> None:
    async with open_persistence(settings_for(module_database, pool_min_size=8)) as persistence:
        for _ in range(3):
            await database_of(persistence).pool.wait(10)
            kill_connections(module_database)
            begin = time.monotonic()
            await finished(persistence.metadata_store, "t")
            assert time.monotonic() - begin < 2


async def test_an_exhausted_pool_is_a_typed_error_in_time(module_database: str) -> None:
    options = {"pool_min_size": 1, "pool_max_size": 2, "pool_timeout": 0.5}
    async with open_persistence(settings_for(module_database, **options)) as persistence:
        database = database_of(persistence)
        async with database.pool.connection(), database.pool.connection():
            begin = time.monotonic()
            results = await asyncio.gather(
                *(persistence.metadata_store.search_runs() for _ in range(10)),
                persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "t"}}),
                return_exceptions=True,
            )
            assert 0.4 < time.monotonic() - begin < 3
        assert [type(result) for result in results] == [StoreUnavailableError] * 11
        assert "pool_max_size" in str(results[0])
        await finished(persistence.metadata_store, "t")


async def test_more_waiters_than_allowed_are_turned_away_at_once(module_database: str) -> None:
    options = {"pool_min_size": 1, "pool_max_size": 1, "pool_timeout": 20.0, "pool_max_waiting": 2}
    async with open_persistence(settings_for(module_database, **options)) as persistence:
        async with database_of(persistence).pool.connection():
            searches = [asyncio.create_task(persistence.metadata_store.search_runs()) for _ in range(5)]
            done, waiting = await asyncio.wait(searches, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
            while len(done) < 3:
                done, waiting = await asyncio.wait(searches, timeout=0.01)
            assert {type(search.exception()) for search in done} == {StoreUnavailableError}
        await asyncio.gather(*waiting)


async def test_an_operation_that_takes_too_long_is_given_up(module_database: str) -> None:
    async with open_persistence(settings_for(module_database, operation_timeout=0.5)) as persistence:
        run_id = await started(persistence.metadata_store, "t")
        with psycopg.connect(module_database) as other:
            other.execute("SELECT FROM app_runs FOR UPDATE")
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="in time"):
                await persistence.metadata_store.update_run(run_id, metadata={"a": 1})
            assert time.monotonic() - begin < 3
        await persistence.metadata_store.update_run(run_id, metadata={"a": 1})


async def test_a_thread_deleted_while_a_run_starts_on_it_is_made_anew(module_database: str) -> None:
    async with open_persistence(settings_for(module_database)) as persistence:
        store = persistence.metadata_store
        await store.create_thread("contested", metadata={"old": True})
        with psycopg.connect(module_database) as other:
            other.execute("DELETE FROM app_threads WHERE thread_id = 'contested'")
            starting = asyncio.create_task(started(store, "contested"))
            await somebody_waits_for_a_lock(module_database)
            other.commit()
        await starting
        assert (await the_thread(store, "contested"))["metadata"] == {}


async def test_a_thread_deleted_while_a_run_is_tied_to_it_is_made_anew(module_database: str) -> None:
    async with open_persistence(settings_for(module_database)) as persistence:
        store = persistence.metadata_store
        await store.create_thread("contested-2", metadata={"old": True})
        run_id = await started(store)
        with psycopg.connect(module_database) as other:
            other.execute("DELETE FROM app_threads WHERE thread_id = 'contested-2'")
            attaching = asyncio.create_task(store.attach_thread(run_id, "contested-2", owner=None))
            await somebody_waits_for_a_lock(module_database)
            other.commit()
        await attaching
        assert (await the_thread(store, "contested-2"))["metadata"] == {}


async def test_a_restart_of_the_server_is_survived(private_postgres_server: LocalPostgresServer) -> None:
    dsn = private_postgres_server.create_database()
    async with open_persistence(settings_for(dsn, pool_min_size=2, pool_timeout=2.0)) as persistence:
        await finished(persistence.metadata_store, "t")
        before = await everything(persistence.metadata_store)
        await asyncio.to_thread(private_postgres_server.stop)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await started(persistence.metadata_store, "t")
        assert time.monotonic() - begin < 6
        await asyncio.to_thread(private_postgres_server.start)
        assert await everything(persistence.metadata_store) == before
        await finished(persistence.metadata_store, "t")


async def test_a_role_that_may_not_create_is_told_so(postgres_server: PostgresServer, postgres_dsn: str) -> None:
    with role_without_create(postgres_dsn) as dsn:
        exc = await fails_to_open(settings_for(dsn))
        assert isinstance(exc, SchemaError)
        assert "CREATE" in str(exc)
        assert PASSWORD not in all_that_is_told(exc)
        async with open_persistence(settings_for(postgres_dsn)):
            pass
        with psycopg.connect(postgres_dsn) as connection:
            connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO modest")
        for setup in (True, False):
            async with open_persistence(settings_for(dsn, setup_schema=setup)) as persistence:
                await finished(persistence.metadata_store, "t")
        with psycopg.connect(postgres_dsn) as connection:
            connection.execute("REVOKE INSERT ON app_runs FROM modest")
        async with open_persistence(settings_for(dsn)) as persistence:
            with pytest.raises(SchemaError, match="grant"):
                await started(persistence.metadata_store)


async def test_a_closed_pool_says_so(module_database: str) -> None:
    async with open_persistence(settings_for(module_database)) as persistence:
        pass
    with pytest.raises(StoreUnavailableError, match="closed"):
        await persistence.metadata_store.search_runs()


def database_of(persistence: Persistence) -> Any:
    assert isinstance(persistence.metadata_store, MetadataStore)
    return persistence.metadata_store._database


def kill_connections(dsn: str) -> None:
    """End all sessions of skeino's in the server, and wait until they are gone."""
    with psycopg.connect(dsn, autocommit=True) as other:
        killed = other.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE application_name = 'skeino' AND datname = current_database()"
        ).fetchone()
    assert killed is not None
    assert killed[0] >= 1


async def somebody_waits_for_a_lock(dsn: str) -> None:
    """Return once a session of skeino's waits for a row that another one holds."""
    async with asyncio.timeout(10):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:
            while True:
                waiting = await watching.execute(
                    "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                if waiting.rowcount:
                    return
                await asyncio.sleep(0.01)


@contextmanager
def role_without_create(dsn: str) -> Iterator[str]:
    """The database as seen by a role that may log in and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS modest")
        connection.execute(sql.SQL("CREATE ROLE modest LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        yield with_parameters(dsn, user="modest", password=PASSWORD)
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP OWNED BY modest")
            connection.execute("DROP ROLE modest")


async def test_a_request_cancelled_while_it_returns_its_connection_does_not_lose_it(module_database: str) -> None:
    async with open_persistence(settings_for(module_database, pool_min_size=1, pool_max_size=1)) as persistence:
        database = database_of(persistence)
        used, go_on = asyncio.Event(), asyncio.Event()

        async def use() -> None:
            async with database.connection():
                used.set()
                await go_on.wait()

        task = asyncio.create_task(use())
        await used.wait()
        async with database.pool._lock:  # returning a connection waits for it
            go_on.set()
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        await asyncio.wait([task])
        async with asyncio.timeout(2):
            assert await persistence.metadata_store.search_runs() is not None
