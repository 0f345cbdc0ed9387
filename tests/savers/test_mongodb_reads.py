"""MongoDB: what cannot be read together is read one by one; what waits for a thread at the end is told so."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from pymongo.errors import OperationFailure

from skeino.errors import StoreUnavailableError
from skeino.persistence import open_checkpointer
from skeino.persistence.mongodb import checkpoints
from skeino.persistence.mongodb import saver as module
from skeino.persistence.mongodb.saver import StampedMongoDBSaver
from tests.contract.test_mongodb_server import settings_for
from tests.savers.graphs import config_of
from tests.savers.test_reads_together import Marked, latest, messages, short_ones


@pytest.fixture
async def saver(mongodb_uri: str) -> AsyncIterator[StampedMongoDBSaver]:
    async with open_checkpointer(settings_for(mongodb_uri)) as opened:
        yield cast("StampedMongoDBSaver", opened)


async def test_what_the_server_refuses_together_is_read_one_by_one(
    saver: StampedMongoDBSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = await short_ones(saver, 3)
    refused: list[int] = []

    def refusing(asked: Any) -> Any:
        refused.append(len(asked))
        raise OperationFailure("not together")

    monkeypatch.setattr(module, "latest_of_each", refusing)
    assert [messages(one)[0] for one in await latest(saver, *threads)] == [f"to {name}" for name in threads]
    assert refused == [3]


async def test_for_one_that_cannot_be_loaded_no_other_is_read_again(
    saver: StampedMongoDBSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = await short_ones(saver, 5)
    saver.serde = Marked()
    alone: list[int] = []
    one = checkpoints.one

    def counted(*arguments: Any) -> Any:
        alone.append(1)
        return one(*arguments)

    monkeypatch.setattr(module, "one", counted)
    found = await asyncio.gather(*(saver.aget_tuple(config_of(name)) for name in threads), return_exceptions=True)
    assert [isinstance(one, Exception) for one in found] == [False, False, False, True, False]
    assert alone == [1]


async def test_what_waits_for_a_thread_when_all_is_closed_is_told_so(mongodb_uri: str) -> None:
    go_on = threading.Event()
    async with open_checkpointer(settings_for(mongodb_uri, pool_max_size=1)) as opened:
        saver = cast("StampedMongoDBSaver", opened)
        long = asyncio.create_task(saver.database.in_thread(lambda: go_on.wait(30)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(saver.aget_tuple(config_of(f"t{number}"))) for number in range(3)]
        cancelled = asyncio.create_task(saver.aget_tuple(config_of("t")))
        await asyncio.sleep(0.05)
        cancelled.cancel()
    long.cancel()
    await asyncio.sleep(0)
    go_on.set()
    answers = await asyncio.gather(*waiting, cancelled, long, return_exceptions=True)
    assert [type(one) for one in answers] == [StoreUnavailableError] * 3 + [asyncio.CancelledError] * 2
