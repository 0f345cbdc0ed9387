"""What runs write to MongoDB touches the documents of the threads that they hold, in the same transaction.

So whoever takes one of them meanwhile collides with it, and comes before it or after it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient

from skeino import StoreUnavailableError
from skeino_asgi import RunTracker
from tests.contract.test_mongodb_server import settings_for
from tests.savers.graphs import config_of
from tests.savers.test_mongodb_batches import a_checkpoint
from tests.savers.test_mongodb_upserts import at_once, putting
from tests.servers.mongodb import LocalMongoServer

AWAY = 1.0
"""Seconds after which a server counts as one that cannot be reached."""

THREADS = ("t", "$_id", "$fence", "$$ROOT", "$literal", "a.b", '{"$gt": ""}')


@pytest.fixture
async def tracker(mongodb_uri: str) -> AsyncIterator[RunTracker]:
    tracker = RunTracker(settings_for(mongodb_uri))
    async with tracker.lifespan():
        yield tracker


def touches(mongodb_uri: str) -> dict[str, int]:
    with MongoClient[dict[str, Any]](mongodb_uri) as client:
        threads = client.get_default_database()["app_threads"].find({}, {"writes": 1})
        return {thread["_id"]: thread.get("writes", 0) for thread in threads}


async def test_each_thread_is_touched_whatever_it_is_called(tracker: RunTracker, mongodb_uri: str) -> None:
    for number in range(1, 4):  # with a fence of its own each time
        await at_once(tracker, {name: putting(name, a_checkpoint()) for name in THREADS}, in_runs=True)
        assert touches(mongodb_uri) == dict.fromkeys(THREADS, number)


async def test_all_that_wait_are_told_once_that_the_server_cannot_be_reached(
    private_mongodb_server: LocalMongoServer,
) -> None:
    tracker = RunTracker(settings_for(private_mongodb_server.create_database(), connect_timeout=AWAY))
    ready, killed = asyncio.Barrier(9), asyncio.Event()
    told: list[float] = []

    async def write(thread_id: str) -> None:
        async with tracker.run(thread_id=thread_id):
            await tracker.checkpointer.aget_tuple(config_of(thread_id))
            await ready.wait()
            await killed.wait()
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await putting(thread_id, a_checkpoint())(tracker.checkpointer)
            told.append(time.monotonic())

    async with tracker.lifespan():
        writing = [asyncio.create_task(write(f"t{number}")) for number in range(8)]
        await ready.wait()
        await asyncio.to_thread(private_mongodb_server.kill)
        begin = time.monotonic()
        killed.set()
        await asyncio.wait(writing)  # their ends cannot be written either
        await asyncio.to_thread(private_mongodb_server.start)
    assert len(told) == 8
    assert max(told) - begin < 4 * AWAY, "not one after the other"
