"""PostgreSQL: the latest checkpoints that are read at the same time are what each would be by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import psycopg
import pytest
from langgraph.checkpoint.base import CheckpointTuple

from skeino import SkeinoSettings
from skeino.persistence import open_checkpointer
from skeino.persistence.postgres import StampedPostgresSaver, reading
from tests.contract.backends import empty
from tests.savers.graphs import config_of
from tests.savers.test_postgres_batches import put, put_writes


@pytest.fixture
def settings(module_database: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=module_database)


@pytest.fixture
async def saver(settings: SkeinoSettings, module_database: str) -> AsyncIterator[StampedPostgresSaver]:
    async with open_checkpointer(settings) as opened:
        empty(module_database)
        yield cast("StampedPostgresSaver", opened)


async def latest(saver: StampedPostgresSaver, *threads: str) -> list[CheckpointTuple | None]:
    """Those of the threads, read at once."""
    return await asyncio.gather(*(saver.aget_tuple(config_of(thread_id)) for thread_id in threads))


async def short_ones(saver: StampedPostgresSaver, number: int) -> list[str]:
    """So many threads with two checkpoints each; the ids of the later ones."""
    for index in range(number):
        for step in "ab":
            await put(f"t{index}", f"{step}{index}", {"messages": [index, step]}, version=step)(saver)
        await put_writes(f"t{index}", f"b{index}", "task", ("messages", [index]))(saver)
    return [f"b{index}" for index in range(number)]


async def test_many_at_once_are_few_statements(saver: StampedPostgresSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await short_ones(saver, 40)
    sizes: list[int] = []
    read, one = reading.latest_of_each, reading.one

    async def together(cursor: Any, places: Any, **options: Any) -> Any:
        sizes.append(len(places))
        return await read(cursor, places, **options)

    async def alone(*arguments: Any, **options: Any) -> Any:
        sizes.append(1)
        return await one(*arguments, **options)

    monkeypatch.setattr(reading, "latest_of_each", together)
    monkeypatch.setattr(reading, "one", alone)
    found = await latest(saver, *(f"t{index}" for index in range(40)))
    assert [one and one.checkpoint["id"] for one in found] == ids
    assert [one and one.checkpoint["channel_values"]["messages"] for one in found] == [[n, "b"] for n in range(40)]
    assert [one and one.pending_writes for one in found] == [[("task", "messages", [n])] for n in range(40)]
    await latest(saver, "t1")
    assert (sorted(sizes[:3]), sizes[3:]) == ([8, 16, 16], [1])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], asyncio.Event]:
    """Lets what is read together take so many seconds in the server; the event is set when it begins."""
    read = reading.latest_of_each

    def for_seconds(seconds: float) -> asyncio.Event:
        begun = asyncio.Event()

        async def slowly(cursor: Any, *arguments: Any, **options: Any) -> Any:
            begun.set()
            await cursor.execute("SELECT pg_sleep(%s)", [seconds])
            return await read(cursor, *arguments, **options)

        monkeypatch.setattr(reading, "latest_of_each", slowly)
        return begun

    return for_seconds


async def test_a_caller_that_is_cancelled_loses_its_answer_alone(
    saver: StampedPostgresSaver, slow: Callable[[float], asyncio.Event]
) -> None:
    ids = await short_ones(saver, 4)
    begun = slow(0.2)
    tasks = [asyncio.create_task(saver.aget_tuple(config_of(f"t{index}"))) for index in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # it has asked
    await begun.wait()
    tasks[1].cancel()  # it is being read
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found[:2]] == [asyncio.CancelledError] * 2
    assert [one.checkpoint["id"] for one in found[2:] if isinstance(one, CheckpointTuple)] == ids[2:]
    assert (await saver.aget_tuple(config_of("t0"))) is not None


async def test_what_nobody_waits_for_any_more_is_not_read_to_the_end(
    saver: StampedPostgresSaver, slow: Callable[[float], asyncio.Event], module_database: str
) -> None:
    await short_ones(saver, 3)
    begun = slow(30)
    tasks = [asyncio.create_task(saver.aget_tuple(config_of(f"t{index}"))) for index in range(3)]
    await begun.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with psycopg.connect(module_database, autocommit=True) as other:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        async with asyncio.timeout(10):
            while other.execute(asleep).fetchone() != (0,):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("failure", [psycopg.DataError, psycopg.errors.QueryCanceled])
async def test_what_fails_together_is_read_one_by_one(
    saver: StampedPostgresSaver, monkeypatch: pytest.MonkeyPatch, failure: type[psycopg.Error]
) -> None:
    ids = await short_ones(saver, 3)

    async def failing(*_: Any, **__: Any) -> Any:
        raise failure("one of them is bad")

    monkeypatch.setattr(reading, "latest_of_each", failing)
    assert [one and one.checkpoint["id"] for one in await latest(saver, "t0", "t1", "t2")] == ids


async def test_a_connection_that_is_lost_meanwhile_is_not_noticed(
    saver: StampedPostgresSaver, module_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await short_ones(saver, 3)
    read, lost = reading.latest_of_each, 0

    async def losing(cursor: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal lost
        if not lost:
            lost = cursor.connection.info.backend_pid
            with psycopg.connect(module_database, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [lost])
        return await read(cursor, *arguments, **options)

    monkeypatch.setattr(reading, "latest_of_each", losing)
    assert [one and one.checkpoint["id"] for one in await latest(saver, "t0", "t1", "t2")] == ids
    assert lost
