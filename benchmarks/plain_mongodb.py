"""Runs in MongoDB, tracked by hand: a client for each transaction, one for all, and what `bulk_write` reaches.

A write is acknowledged by the majority and the journal, the default of a replica set, as with skeino.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

from bson.int64 import Int64
from pymongo import AsyncMongoClient, InsertOne, MongoClient, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks import rows
from benchmarks.servers import Place
from benchmarks.throughput import Variant, batching, stepping

Document = dict[str, Any]
Clients = Callable[[], AbstractAsyncContextManager[AsyncMongoClient[Document]]]


@asynccontextmanager
async def variants(place: Place) -> AsyncIterator[dict[str, Variant]]:
    uri = await place.with_tables()

    @asynccontextmanager
    async def new() -> AsyncIterator[AsyncMongoClient[Document]]:
        async with AsyncMongoClient[Document](uri) as client:
            yield client

    async with AsyncMongoClient[Document](await place.with_tables()) as shared:

        @asynccontextmanager
        async def the_only() -> AsyncIterator[AsyncMongoClient[Document]]:
            yield shared

        with MongoClient[Document](await place.with_tables()) as blocking:
            yield {
                "a connection for each": _plain(new),
                "a pool": _plain(the_only),
                "the limit": batching(lambda numbers: _write(blocking, numbers)),
            }


def _plain(clients: Clients) -> Variant:
    async def start(number: int) -> None:
        values = rows.beginning(number)
        thread, new = _thread(values)
        async with clients() as client, _transaction(client) as (database, session):
            await database.app_threads.update_one(thread, new, upsert=True, session=session)
            await database.app_runs.insert_one(_run(values), session=session)

    async def finish(number: int) -> None:
        values = rows.end(number)
        run, ended = _ended_run(values)
        thread, settled = _settled_thread(values)
        async with clients() as client, _transaction(client) as (database, session):
            await database.app_runs.update_one(run, ended, session=session)
            await database.app_threads.update_one(thread, settled, session=session)

    return stepping({"start": start, "finish": finish})


@asynccontextmanager
async def _transaction(
    client: AsyncMongoClient[Document],
) -> AsyncIterator[tuple[AsyncDatabase[Document], AsyncClientSession]]:
    async with client.start_session() as session, await session.start_transaction():
        yield client.get_default_database(), session


def _write(client: MongoClient[Document], numbers: Sequence[int]) -> None:
    """Without transactions, and in no order."""
    database = client.get_default_database()
    beginnings = [rows.beginning(number) for number in numbers]
    new_threads = [UpdateOne(*_thread(values), upsert=True) for values in beginnings]
    database.app_threads.bulk_write(new_threads, ordered=False)
    database.app_runs.bulk_write([InsertOne(_run(values)) for values in beginnings], ordered=False)
    ends = [rows.end(number) for number in numbers]
    database.app_runs.bulk_write([UpdateOne(*_ended_run(values)) for values in ends], ordered=False)
    database.app_threads.bulk_write([UpdateOne(*_settled_thread(values)) for values in ends], ordered=False)


def _thread(values: Document) -> tuple[Document, Document]:
    new: Document = {
        "owner": None,
        "status": "idle",
        "metadata": [],
        "config": "{}",
        "ttl": None,
        "created_at": _microseconds(values["now"]),
        "updated_at": _microseconds(values["now"]),
    }
    return {"_id": values["thread_id"]}, {"$setOnInsert": new}


def _run(values: Document) -> Document:
    return {
        "_id": values["run_id"],
        "thread_id": values["thread_id"],
        "owner": None,
        "worker_id": values["worker_id"],
        "status": "running",
        "active": True,
        "metadata": [],
        "kwargs": values["kwargs"],
        "error": None,
        "http_status": None,
        "created_at": _microseconds(values["now"]),
        "started_at": _microseconds(values["now"]),
        "finished_at": Int64(2**63 - 1),
        "checkpoint_count": 0,
        "first_checkpoint_id": None,
        "last_checkpoint_id": None,
        "paused": False,
    }


def _ended_run(values: Document) -> tuple[Document, Document]:
    ended = {
        "status": "success",
        "active": False,
        "finished_at": _microseconds(values["now"]),
        "http_status": 200,
        "checkpoint_count": 5,
    }
    return {"_id": values["run_id"], "worker_id": values["worker_id"], "active": True}, {"$set": ended}


def _settled_thread(values: Document) -> tuple[Document, Document]:
    settled = {"status": "idle", "updated_at": _microseconds(values["now"])}
    return {"_id": values["thread_id"]}, {"$set": settled}


def _microseconds(moment: datetime) -> int:
    return round(1e6 * moment.timestamp())
