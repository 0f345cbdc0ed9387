"""PostgreSQL: the writer's session keeps its plans, which suit a table that grows. Behind a pooler it keeps none."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from langgraph.checkpoint.base import empty_checkpoint
from psycopg.rows import dict_row

from skeino import SkeinoSettings
from skeino.persistence import MetadataStore, Persistence, open_persistence
from skeino.persistence.postgres.session import Session, is_own_session
from skeino.runs import new_id
from skeino.testing import ending, started
from tests.contract.backends import empty

# What others have stored since the plans were made. Nothing has analysed the tables, as in the first minute of a
# real database.
MANY = 20_000
FILL = f"""
    INSERT INTO app_threads (thread_id, status, metadata, config, created_at, updated_at)
    SELECT 'other ' || n, 'idle', '{{}}', '{{}}', now(), now() FROM generate_series(1, {MANY}) n;
    INSERT INTO app_runs (run_id, thread_id, worker_id, status, metadata, kwargs, created_at, started_at)
    SELECT gen_random_uuid(), 'other ' || n, 'other', 'running', '{{}}', '{{}}', now(), now()
    FROM generate_series(1, {MANY}) n;
    INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
    SELECT 'other ' || n, n::text, '{{}}', '{{}}' FROM generate_series(1, {MANY}) n;
    INSERT INTO checkpoint_blobs (thread_id, channel, version, type)
    SELECT 'other ' || n, 'c', '1', 'empty' FROM generate_series(1, {MANY}) n;
    INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob)
    SELECT 'other ' || n, n::text, 't', 0, 'c', '' FROM generate_series(1, {MANY}) n;
    SELECT pg_stat_force_next_flush()
"""
ROWS_READ = """
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::integer AS rows FROM pg_stat_user_tables
    WHERE relname LIKE 'app\\_%' OR relname LIKE 'checkpoint%'
"""
OTHERS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def settings_of(dsn: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=dsn)


async def writes_of_each_kind(persistence: Persistence, at_once: int, turn: str) -> int:
    """So many of each kind of write, together; the number of writes."""
    store, saver = persistence.metadata_store, persistence.checkpointer
    names = [f"{turn} {number}" for number in range(at_once)]

    async def each(call: Callable[[str], Any]) -> list[Any]:
        return await asyncio.gather(*map(call, names))

    def config(name: str) -> Any:
        return {"configurable": {"thread_id": name, "checkpoint_ns": "", "checkpoint_id": "1"}}

    on_threads = await each(lambda name: started(store, name))
    reading = await each(lambda name: started(store, name, create_thread=False))
    without = await each(lambda _: started(store))
    await asyncio.gather(
        *(store.attach_thread(run_id, name, owner=None) for run_id, name in zip(without, names, strict=True))
    )
    checkpoint: Any = {**empty_checkpoint(), "id": "2", "channel_values": {"a": [1]}, "channel_versions": {"a": "1"}}
    await each(lambda name: saver.aput(config(name), checkpoint, {}, {"a": "1"}))
    await each(lambda name: saver.aput_writes(config(name), [("a", 1)], "task"))
    await each(lambda name: saver.aput_writes(config(name), [("__interrupt__", 1)], "task"))
    for ids in (on_threads, reading, without):
        assert all(await asyncio.gather(*(store.finish_run(ending(run_id)) for run_id in ids)))
    return 10 * at_once


async def test_a_plan_made_for_empty_tables_reads_none_of_them_when_they_are_full(module_database: str) -> None:
    with psycopg.connect(module_database, autocommit=True, row_factory=dict_row) as connection:
        async with open_persistence(settings_of(module_database)) as persistence:
            empty(module_database)
            await writes_of_each_kind(persistence, 1, "young")
            await writes_of_each_kind(persistence, 64, "young")
            connection.execute(FILL)  # type: ignore[arg-type,unused-ignore]
            before = connection.execute(ROWS_READ).fetchone()
            written = await writes_of_each_kind(persistence, 1, "grown")
            written += await writes_of_each_kind(persistence, 64, "grown")
        while connection.execute(OTHERS).fetchone():  # one that has ended has told all its figures
            await asyncio.sleep(0.05)
        after = connection.execute(ROWS_READ).fetchone()
        empty(module_database)
    assert before is not None
    assert after is not None
    read = after["rows"] - before["rows"] - 2 * written  # those of the first writes, as well, are told only now
    assert read < 10 * written


async def test_the_session_is_the_writers_own_without_a_pooler(module_database: str) -> None:
    async with await psycopg.AsyncConnection.connect(module_database, autocommit=True, row_factory=dict_row) as one:
        assert await is_own_session(one)


async def test_without_a_pooler_the_writers_statements_are_prepared_once_and_planned_once(
    module_database: str,
) -> None:
    async with open_persistence(settings_of(module_database)) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, MetadataStore)
        for at_once in (1, 8):
            for turn in range(3):
                await writes_of_each_kind(persistence, at_once, f"turn {turn}")
        prepared = await store._database._session.fetch(
            "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements "
            "WHERE statement NOT LIKE '%%pg_prepared_statements%%'",
            {},
        )
    written = [row for row in prepared if "INSERT INTO" in row["statement"] or "UPDATE" in row["statement"]]
    assert len(written) >= 14, "each kind has a statement for one and one for many"
    assert all(row["custom_plans"] == 0 for row in written)
    assert len({row["statement"] for row in written}) == len(written), "one is prepared for several types of its values"


async def test_behind_a_pooler_nothing_is_prepared_and_nothing_set(pgbouncer_dsn: str) -> None:
    async with open_persistence(settings_of(pgbouncer_dsn)) as persistence:
        await writes_of_each_kind(persistence, 8, "pooled")
        store = persistence.metadata_store
        assert isinstance(store, MetadataStore)
        rows = await store._database.fetch("SELECT name FROM pg_prepared_statements", {})
        assert rows == []
        rows = await store._database.fetch("SELECT current_setting('enable_seqscan') AS on", {})
        assert rows == [{"on": "on"}]


async def test_a_lost_plan_is_made_again(module_database: str) -> None:
    """As behind a pooler that passes the numbers of its servers' sessions on."""

    async def connect() -> Any:
        return await psycopg.AsyncConnection.connect(module_database, autocommit=True, row_factory=dict_row)

    session = Session(connect, patience=1.0)
    await session.open()
    try:
        assert await session.fetch("SELECT %(n)s::integer AS n", {"n": 1}) == [{"n": 1}]
        assert session._connection is not None
        await session._connection.execute("DO 'BEGIN DEALLOCATE ALL; END'")
        for number in (2, 3):
            assert await session.fetch("SELECT %(n)s::integer AS n", {"n": number}) == [{"n": number}]
        assert not session.is_own
    finally:
        await session.close()


async def test_it_is_opened_again_after_the_server_has_ended_it(module_database: str) -> None:
    async with open_persistence(settings_of(module_database)) as persistence:
        run_id = await started(persistence.metadata_store, new_id())
        with psycopg.connect(module_database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await persistence.metadata_store.finish_run(ending(run_id))
