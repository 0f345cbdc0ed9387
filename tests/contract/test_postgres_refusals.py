"""PostgreSQL answers, but not as it should: what may succeed at once is tried again, all else is a typed error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
import pytest

from skeino import SkeinoSettings, StoreError, StoreUnavailableError
from skeino.persistence import open_persistence
from skeino.testing import ending, started, the_run
from tests.contract.backends import empty
from tests.servers.postgres import LocalPostgresServer

REFUSE = """
    CREATE SEQUENCE attempts;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('attempts') <= {times} THEN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON app_runs FOR EACH ROW EXECUTE FUNCTION refuse()
"""
FORGIVE = "DROP TRIGGER refuse ON app_runs; DROP FUNCTION refuse; DROP SEQUENCE attempts"


@contextmanager
def refusing(dsn: str, code: str, times: int) -> Iterator[psycopg.Connection[Any]]:
    """The first so many starts are refused like that; the sequence `attempts` counts them all."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(REFUSE.format(times=times, code=code))  # type: ignore[arg-type,unused-ignore]
        try:
            yield connection
        finally:
            connection.execute(FORGIVE)


@pytest.mark.parametrize("code", ["40001", "40P01", "57P01", "57P02", "57P03", "08006", "25006"])
async def test_what_may_succeed_at_once_is_repeated(module_database: str, code: str) -> None:
    settings = SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=module_database)
    async with open_persistence(settings) as persistence:
        with refusing(module_database, code, 2):
            run_id = await started(persistence.metadata_store)
        assert (await the_run(persistence.metadata_store, run_id))["status"] == "running"
    empty(module_database)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("53100", StoreUnavailableError, "no space left"),
        ("53200", StoreUnavailableError, "out of memory"),
        ("57014", StoreUnavailableError, "57014"),
        ("XX000", StoreError, "XX000"),
        ("23514", StoreError, "23514"),
    ],
)
async def test_what_would_fail_again_is_a_typed_error_at_once(
    module_database: str, code: str, kind: type[StoreError], said: str
) -> None:
    settings = SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=module_database)
    async with open_persistence(settings) as persistence:
        with refusing(module_database, code, 99) as connection:
            with pytest.raises(kind, match=said) as failed:
                await started(persistence.metadata_store)
            tried = connection.execute("SELECT last_value FROM attempts").fetchone()
        assert tried is not None
        assert tried[0] <= 2  # together with others, and then alone
        assert not getattr(failed.value, "maybe_done", False)
        await started(persistence.metadata_store)
    empty(module_database)


async def test_after_a_failover_the_new_primary_is_found(private_postgres_server: LocalPostgresServer) -> None:
    """Both are one server here, which is a standby for a while: it says so, and takes no write."""
    dsn = private_postgres_server.create_database()
    settings = SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=dsn)
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store
        run_id = await started(store, "t")
        with psycopg.connect(private_postgres_server.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            try:
                await asyncio.sleep(0.3)
                writing = [asyncio.ensure_future(one) for one in (store.finish_run(ending(run_id)), started(store))]
                await asyncio.sleep(0.5)
                assert not any(one.done() for one in writing)
            finally:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(5):
            assert (await asyncio.gather(*writing))[0] is True


async def test_a_standby_that_stays_one_is_a_typed_error_in_time(private_postgres_server: LocalPostgresServer) -> None:
    dsn = private_postgres_server.create_database()
    settings = SkeinoSettings(
        checkpointer_scheme="postgres", checkpointer_uri=dsn, checkpointer_options={"pool_timeout": 0.5}
    )
    async with open_persistence(settings) as persistence:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")
            try:
                store = persistence.metadata_store
                await started(store)  # on a connection that was there before
                before = connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'skeino'"
                ).fetchall()
                pids = [pid for (pid,) in before]
                connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
                while connection.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s)", (pids,)).fetchall():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # until they are known to be gone: one that breaks meanwhile leaves a doubt
                begin = time.monotonic()
                with pytest.raises(StoreUnavailableError, match="read-only") as failed:
                    await started(store)
                assert time.monotonic() - begin < 3
                assert not failed.value.maybe_done
            finally:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER ROLE CURRENT_USER RESET default_transaction_read_only")
        await started(store)


async def test_a_server_without_a_free_connection_is_a_typed_error_and_is_used_again(
    private_postgres_server: LocalPostgresServer,
) -> None:
    dsn = private_postgres_server.create_database()
    settings = SkeinoSettings(
        checkpointer_scheme="postgres", checkpointer_uri=dsn, checkpointer_options={"pool_timeout": 0.5}
    )
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store
        with ExitStack() as all_there_are:
            connection = all_there_are.enter_context(psycopg.connect(dsn, autocommit=True))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skeino'"
            )
            with suppress(psycopg.OperationalError):
                while True:
                    all_there_are.enter_context(psycopg.connect(dsn))
            with pytest.raises(StoreUnavailableError, match="too many connections"):
                await started(store)
        async with asyncio.timeout(5):
            while True:
                try:
                    await started(store)
                    break
                except StoreUnavailableError:  # the server is still ending the others
                    pass
