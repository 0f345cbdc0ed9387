"""What comes together to a SQLite file shares transactions: each is done wholly or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence import SqliteMetadataStore, open_persistence
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.testing import ending, started
from tests.asgi.graphs import compiled


def settings_for(folder: Path) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(folder / "skeino.db"))


def database_of(store: Any) -> SqliteDatabase:
    assert isinstance(store, SqliteMetadataStore)
    return store._database


def sizes_of_transactions(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0
) -> list[int]:
    """How many writes are in each from here on, as they come; each takes so much longer."""
    sizes: list[int] = []
    transact = database._transact

    def counting(writes: Any) -> Any:
        sizes.append(len(writes))
        time.sleep(seconds)  # in the writer's thread
        return transact(writes)

    monkeypatch.setattr(database, "_transact", counting)
    return sizes


async def test_both_halves_share_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        sizes = sizes_of_transactions(database_of(persistence.metadata_store), monkeypatch)
        graph = compiled(persistence.checkpointer)

        async def converse(number: int) -> None:
            run_id = await started(persistence.metadata_store, f"t{number}")
            await graph.ainvoke({"words": ["hello"]}, {"configurable": {"thread_id": f"t{number}"}})
            assert await persistence.metadata_store.finish_run(ending(run_id))

        await asyncio.gather(*(converse(number) for number in range(50)))
        assert len(sizes) < sum(sizes) / 5  # many to one transaction
        assert len(await persistence.metadata_store.search_runs(status="success", limit=1000)) == 50
        for number in range(50):
            config: Any = {"configurable": {"thread_id": f"t{number}"}}
            assert (await graph.aget_state(config)).values == {"words": ["hello", "echo hello"]}


async def test_a_graph_alone_commits_once_for_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        # Each takes a while: on a disk in memory the graph would be slower than a commit.
        sizes = sizes_of_transactions(database_of(persistence.metadata_store), monkeypatch, seconds=0.02)
        config: Any = {"configurable": {"thread_id": "thread"}}
        graph = compiled(persistence.checkpointer)
        await graph.ainvoke({"words": ["hello"]}, config)
        assert len(sizes) == len([checkpoint async for checkpoint in graph.aget_state_history(config)]) == 3, sizes
        assert sum(sizes) == 5, "pending writes go with the checkpoint that follows"


async def test_a_work_that_fails_is_undone_and_its_neighbours_are_committed(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        database = database_of(persistence.metadata_store)
        await database.write(lambda connection: connection.execute("CREATE TABLE t (a INTEGER UNIQUE)").close())

        def insert(*values: int) -> Any:
            def work(connection: sqlite3.Connection) -> int:
                for value in values:
                    connection.execute("INSERT INTO t VALUES (?)", (value,))
                return len(values)

            return work

        def raises(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO t VALUES (99)")
            raise LookupError("its own affair")

        works = [insert(1, 2), insert(3, 1), raises, insert(4)]
        answers = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
        assert (answers[0], answers[3]) == (2, 1)
        assert isinstance(answers[1], StoreError)
        assert "SQLITE_CONSTRAINT" in str(answers[1])
        assert isinstance(answers[2], LookupError)
        assert [row[0] for row in await database.read("SELECT a FROM t ORDER BY a")] == [1, 2, 4]


async def test_a_transaction_that_cannot_be_committed_fails_all_that_shared_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        store = persistence.metadata_store
        database = database_of(store)
        deferred = "INSERT INTO b VALUES (1)"
        await database.write(lambda connection: connection.execute("CREATE TABLE a (i INTEGER PRIMARY KEY)").close())
        await database.write(
            lambda connection: connection.execute(
                "CREATE TABLE b (i INTEGER REFERENCES a (i) DEFERRABLE INITIALLY DEFERRED)"
            ).close()
        )
        answers = await asyncio.gather(
            database.write(lambda connection: connection.execute(deferred).close()),
            started(store, "t1"),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [StoreError, StoreError]
        assert await store.get_thread("t1") is None
        assert await started(store, "t2")


async def test_what_was_queued_when_it_closes_is_written(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        tasks = [asyncio.create_task(started(persistence.metadata_store, f"t{number}")) for number in range(100)]
        await asyncio.sleep(0)
    ids = await asyncio.gather(*tasks)
    async with open_persistence(settings_for(tmp_path)) as persistence:
        found = await persistence.metadata_store.search_runs(limit=1000)
    assert {run["run_id"] for run in found} == set(ids)


async def test_a_close_that_is_cancelled_writes_and_closes_all_the_same(tmp_path: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE made (i INTEGER)").close()
        begun.set()
        goes_on.wait(30)

    opened = open_persistence(settings_for(tmp_path))
    database = database_of((await opened.__aenter__()).metadata_store)
    writing = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 30)
    queued = asyncio.create_task(
        database.write(lambda connection: connection.execute("INSERT INTO made VALUES (1)").close())
    )
    closing = asyncio.create_task(opened.__aexit__(None, None, None))
    for _ in range(2):
        await asyncio.sleep(0.05)
        closing.cancel()
    await asyncio.sleep(0.05)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, 30)
    await asyncio.gather(writing, queued)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database._connection.execute("SELECT 1")
    with pytest.raises(StoreUnavailableError, match="closed"):
        await database.read("SELECT 1")
    with pytest.raises(RuntimeError, match="has ended"):
        await asyncio.wait_for(database.close(), 30)  # twice
    async with open_persistence(settings_for(tmp_path)) as persistence:
        assert [row[0] for row in await database_of(persistence.metadata_store).read("SELECT i FROM made")] == [1]
