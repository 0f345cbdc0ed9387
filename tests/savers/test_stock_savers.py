"""Our durable savers and LangGraph's own keep the same tables: what one writes, the other reads."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from operator import itemgetter
from typing import Any

import psycopg
import pytest
import redis
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.redis.aio import AsyncRedisSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command
from pymongo import MongoClient
from redis.asyncio import Redis as AsyncRedis

from skeino import SkeinoSettings
from skeino.persistence import open_checkpointer
from tests.savers.graphs import Saver, asking, checkpoints, config_of, fanned_out, nested, plain, said


@asynccontextmanager
async def stock(settings: SkeinoSettings) -> AsyncIterator[Saver]:
    """LangGraph's saver on the same database."""
    assert settings.checkpointer_uri is not None
    if settings.checkpointer_scheme == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(settings.checkpointer_uri) as saver:
            yield saver
    elif settings.checkpointer_scheme == "mongodb":
        with MongoClient[Any](settings.checkpointer_uri) as client:
            yield MongoDBSaver(client, client.get_default_database().name)
    elif settings.checkpointer_scheme == "redis":
        async with AsyncRedis.from_url(settings.checkpointer_uri) as redis_client:
            async with AsyncRedisSaver(redis_client=redis_client) as redis_saver:
                yield redis_saver
    else:
        async with AsyncPostgresSaver.from_conn_string(settings.checkpointer_uri) as postgres_saver:
            await postgres_saver.setup()
            yield postgres_saver


THREADS = ("plain", "nested", "fanned out", "asking")


async def fill(saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("plain"))
    await nested(saver).ainvoke(said("hello"), config_of("nested"))
    await fanned_out(saver).ainvoke(said("hello"), config_of("fanned out"))
    await asking(saver, questions=2).ainvoke(said("hello"), config_of("asking"))


async def seen(saver: Saver) -> dict[str, list[Any]]:
    """All that can be read, pending writes included, in the saver's order."""
    found: dict[str, list[Any]] = {
        thread_id: [
            *await checkpoints(saver, thread_id),
            *[one async for one in saver.alist(config_of(thread_id), limit=2)],
            await saver.aget_tuple(config_of(thread_id)),
        ]
        for thread_id in THREADS
    }
    if not isinstance(saver, MongoDBSaver):
        return found
    return {  # the stock saver has the tasks in the order of their ids, ours in that of the run
        thread_id: [one._replace(pending_writes=sorted(one.pending_writes, key=itemgetter(0))) for one in tuples]
        for thread_id, tuples in found.items()
    }


async def seen_one_by_one(saver: Saver) -> dict[str, list[Any]]:
    """As `seen`, without an order: the stock Redis saver's lists are not those of LangGraph's suite."""
    found = {thread_id: await checkpoints(saver, thread_id) for thread_id in THREADS}
    return {
        thread_id: sorted(
            [
                one._replace(pending_writes=sorted(one.pending_writes or [], key=repr))
                for one in [await saver.aget_tuple(one.config) for one in listed]
                if one is not None
            ],
            key=lambda one: (one.config["configurable"]["checkpoint_ns"], one.checkpoint["id"]),
        )
        for thread_id, listed in found.items()
    }


async def test_the_stock_saver_reads_what_ours_wrote(durable_settings: SkeinoSettings) -> None:
    async with open_checkpointer(durable_settings) as ours, stock(durable_settings) as theirs:
        await fill(ours)
        assert await seen_one_by_one(theirs) == await seen_one_by_one(ours)
        expected = await seen(ours)
        assert await seen(theirs) == expected or durable_settings.checkpointer_scheme == "redis"
        assert all(len(found) > 4 for found in expected.values())
        assert any(one.pending_writes for one in expected["asking"])
        state = await asking(theirs, questions=2).aget_state(config_of("asking"))
        await asking(theirs, questions=2).ainvoke(
            Command(resume={one.id: "go on" for one in state.interrupts}), config_of("asking")
        )
        assert (await asking(ours, questions=2).aget_state(config_of("asking"))).next == ()


async def test_ours_reads_what_the_stock_saver_wrote(durable_settings: SkeinoSettings) -> None:
    async with stock(durable_settings) as theirs:
        await fill(theirs)
        expected, one_by_one = await seen(theirs), await seen_one_by_one(theirs)
    async with open_checkpointer(durable_settings) as ours:
        assert await seen_one_by_one(ours) == one_by_one
        assert await seen(ours) == expected or durable_settings.checkpointer_scheme == "redis"
        state = await asking(ours, questions=2).aget_state(config_of("asking"))
        await asking(ours, questions=2).ainvoke(
            Command(resume={one.id: "go on" for one in state.interrupts}), config_of("asking")
        )
        await plain(ours).ainvoke(said("again"), config_of("plain"))
        await ours.adelete_thread("nested")
    async with stock(durable_settings) as theirs:
        assert (await asking(theirs, questions=2).aget_state(config_of("asking"))).next == ()
        assert len((await plain(theirs).aget_state(config_of("plain"))).values["messages"]) == 4
        assert await checkpoints(theirs, "nested") == []


async def test_both_write_the_same_bytes(durable_settings: SkeinoSettings) -> None:
    async with open_checkpointer(durable_settings) as ours, stock(durable_settings) as theirs:
        await asking(ours).ainvoke(said("hello"), config_of("source"))
        originals = [one async for one in ours.alist(config_of("source"))][::-1]
        for saver, thread_id in ((ours, "o"), (theirs, "t")):
            for one in originals:
                parent = (one.parent_config or {}).get("configurable", {}).get("checkpoint_id")
                config = config_of(thread_id, checkpoint_ns="", checkpoint_id=parent)
                versions = one.checkpoint["channel_versions"]
                stored = await saver.aput(config, one.checkpoint, one.metadata, versions)
                for task_id, channel, value in one.pending_writes or []:
                    await saver.aput_writes(stored, [(channel, value)], task_id, "path")
        rows = {thread_id: _rows(durable_settings, thread_id) for thread_id in ("o", "t")}
    assert rows["o"] == rows["t"]
    assert all(len(table) > 0 for table in rows["o"].values())


def _rows(settings: SkeinoSettings, thread_id: str) -> dict[str, list[Any]]:
    """A thread's rows in each of LangGraph's tables, but for the thread id, which comes first."""
    uri = settings.checkpointer_uri
    assert uri is not None
    if settings.checkpointer_scheme == "sqlite":
        with closing(sqlite3.connect(uri)) as file:
            return {
                table: [row[1:] for row in file.execute(f"SELECT * FROM {table} WHERE thread_id = ?", (thread_id,))]
                for table in ("checkpoints", "writes")
            }
    if settings.checkpointer_scheme == "mongodb":
        shown = {"_id": False, "thread_id": False}
        with MongoClient[Any](uri) as client:
            database = client.get_default_database()
            return {
                name: database[name].find({"thread_id": thread_id}, shown, sort=[("_id", 1)]).to_list()
                for name in ("checkpoints", "checkpoint_writes")
            }
    if settings.checkpointer_scheme == "redis":
        with redis.Redis.from_url(uri) as client:
            documents: list[Any] = [
                client.json().get(key) for key in client.scan_iter(f"*:{thread_id}:*", _type="ReJSON-RL")
            ]
        for document in documents:
            del document["thread_id"]
            document.pop("checkpoint_ts", None)  # when it was written
        ordered = sorted(documents, key=repr)
        return {
            "checkpoints": [document for document in ordered if "metadata" in document],
            "writes": [document for document in ordered if "task_id" in document],
        }
    with psycopg.connect(uri) as server:
        return {
            table: sorted(
                (
                    row[1:]
                    for row in server.execute(f"SELECT * FROM {table} WHERE thread_id = %s".encode(), (thread_id,))
                ),
                key=repr,
            )
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        }


async def test_reading_while_listing_does_not_deadlock(saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    number = 0
    async with asyncio.timeout(20):
        async for one in saver.alist(config_of("t")):
            assert await saver.aget_tuple(one.config) == one
            await saver.aput_writes(one.config, [("messages", ["x"])], "task")
            number += 1
    assert number == 3


async def test_a_paused_reader_blocks_nobody(saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    paused: list[Any] = [saver.alist(config_of("t")) for _ in range(25)]  # more than a pool has connections
    async with asyncio.timeout(20):
        for reader in paused:
            await anext(reader)
        await asyncio.gather(*(plain(saver).ainvoke(said("hello"), config_of(f"other{n}")) for n in range(10)))
        for reader in paused:
            assert len([one async for one in reader]) == 2


async def test_operations_run_side_by_side(locking_settings: SkeinoSettings) -> None:
    """One slow operation of a process holds up no other: there is no lock around all of them."""
    if locking_settings.checkpointer_scheme == "sqlite":
        async with open_checkpointer(locking_settings) as saver:
            await plain(saver).ainvoke(said("hello"), config_of("t"))
            assert locking_settings.checkpointer_uri is not None
            with closing(sqlite3.connect(locking_settings.checkpointer_uri, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                writing = asyncio.create_task(plain(saver).ainvoke(said("waits"), config_of("t")))
                async with asyncio.timeout(5):
                    assert len(await checkpoints(saver, "t")) == 3
                assert not writing.done()
                other.execute("ROLLBACK")
                await writing
        return
    assert locking_settings.checkpointer_uri is not None
    async with open_checkpointer(locking_settings) as saver:
        await plain(saver).ainvoke(said("hello"), config_of("t"))
        with locked_checkpoints(locking_settings):
            deleting = asyncio.create_task(saver.adelete_thread("t"))
            async with asyncio.timeout(5):
                await asyncio.gather(*(plain(saver).ainvoke(said("x"), config_of(f"o{n}")) for n in range(8)))
            assert not deleting.done()
        await deleting
    assert deleting.exception() is None


@contextmanager
def locked_checkpoints(settings: SkeinoSettings) -> Iterator[None]:
    """The checkpoints of the thread "t" are in the hands of another transaction."""
    assert settings.checkpointer_uri is not None
    if settings.checkpointer_scheme == "mongodb":
        with MongoClient[Any](settings.checkpointer_uri) as client, client.start_session() as session:
            with session.start_transaction():
                collection = client.get_default_database()["checkpoints"]
                collection.update_many({"thread_id": "t"}, {"$set": {"locked": True}}, session=session)
                yield
                session.abort_transaction()
        return
    with psycopg.connect(settings.checkpointer_uri) as connection:
        connection.execute("SELECT FROM checkpoints WHERE thread_id = 't' FOR UPDATE")
        yield


@pytest.mark.parametrize("missing", ["t", "never"])
async def test_a_thread_without_checkpoints_reads_as_empty(saver: Saver, missing: str) -> None:
    assert await saver.aget_tuple(config_of(missing)) is None
    assert await checkpoints(saver, missing) == []
    await saver.adelete_thread(missing)
