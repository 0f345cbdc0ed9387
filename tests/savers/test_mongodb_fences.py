"""What runs write to MongoDB touches the documents of the threads that they hold, in the same transaction.

So whoever takes one of them meanwhile collides with it, and comes before it or after it.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient

from skeino_asgi import RunTracker
from tests.contract.test_mongodb_server import settings_for
from tests.savers.test_mongodb_batches import a_checkpoint
from tests.savers.test_mongodb_upserts import at_once, putting

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
