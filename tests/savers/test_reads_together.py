"""Latest checkpoints that are read at the same time are what each is by itself, on every backend that joins them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from skeino import SkeinoSettings
from skeino.errors import StoreUnavailableError
from skeino.persistence import open_checkpointer
from skeino.persistence.latest import MOST
from tests.savers.graphs import Saver, config_of, plain, said
from tests.savers.statements import counted_statements
from tests.savers.test_reading import fill

THREADS = ("plain", "never", "nested", "old", "asking", "pausing within", "old too", "deltas", "fanned out")


@pytest.fixture
async def saver(locking_settings: SkeinoSettings) -> AsyncIterator[Saver]:
    async with open_checkpointer(locking_settings) as opened:
        yield opened


async def latest(saver: Saver, *threads: str) -> list[CheckpointTuple | None]:
    """Those of the threads, read at once."""
    return await asyncio.gather(*(saver.aget_tuple(config_of(thread_id)) for thread_id in threads))


def messages(checkpoint: CheckpointTuple | BaseException | None) -> Any:
    assert isinstance(checkpoint, CheckpointTuple)
    return checkpoint.checkpoint["channel_values"]["messages"]


async def short_ones(saver: Saver, number: int) -> list[str]:
    """So many threads of one turn."""
    threads = [f"t{index}" for index in range(number)]
    await asyncio.gather(*(plain(saver).ainvoke(said(f"to {name}"), config_of(name)) for name in threads))
    return threads


async def test_at_once_they_are_what_each_is_by_itself(saver: Saver) -> None:
    await fill(saver)
    inner = [
        one.config["configurable"]["checkpoint_ns"]
        async for one in saver.alist(config_of("nested"))
        if one.config["configurable"]["checkpoint_ns"]
    ]
    configs = [*map(config_of, THREADS), config_of("nested", checkpoint_ns=inner[0]), config_of("plain")]
    one_by_one = [await saver.aget_tuple(config) for config in configs]
    assert await asyncio.gather(*map(saver.aget_tuple, configs)) == one_by_one
    assert [found is None for found in one_by_one] == [thread_id == "never" for thread_id in (*THREADS, "", "")]


async def test_many_at_once_are_few_operations(saver: Saver, locking_settings: SkeinoSettings) -> None:
    threads = await short_ones(saver, 2 * MOST + 1)
    with counted_statements(locking_settings) as counted:
        before = counted()
        found = await latest(saver, *threads)
        operations = counted() - before
    assert [messages(one)[0] for one in found] == [f"to {name}" for name in threads]
    if locking_settings.checkpointer_scheme == "sqlite":
        assert operations == 2 * len(threads)  # each by itself, but for the way to the thread and back
    else:
        assert operations <= 2 * 3


async def test_two_who_read_the_same_share_nothing(saver: Saver) -> None:
    await short_ones(saver, 1)
    (found,) = await latest(saver, "t0")
    assert found is not None
    await saver.aput_writes(found.config, [("messages", ["more"])], "task")
    one, other = await latest(saver, "t0", "t0")
    assert one is not None
    assert one == other
    assert other is not None
    cast("Any", one.metadata)["mine"] = True
    one.checkpoint["channel_values"].clear()
    one.checkpoint["channel_versions"].clear()
    one.config["configurable"].clear()
    assert one.pending_writes is not None
    one.pending_writes.clear()
    assert "mine" not in other.metadata
    assert other.checkpoint["channel_values"]
    assert other.checkpoint["channel_versions"]
    assert other.config["configurable"]
    assert other.pending_writes == [("task", "messages", ["more"])]


class Marked(JsonPlusSerializer):
    """Tells what it has read, and cannot read some."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if b"to t3" in data[1]:
            raise TimeoutError("not this")
        loaded = super().loads_typed(data)
        if isinstance(loaded, dict) and "channel_values" in loaded:
            loaded["channel_values"]["marked"] = True
        return loaded if isinstance(loaded, dict) else ["marked", loaded]


async def test_clones_with_another_serializer_share_a_read_and_one_that_fails_fails_alone(saver: Saver) -> None:
    """As `with_allowlist()` makes them."""
    await short_ones(saver, 5)
    clone = cast("Any", object.__new__(type(saver)))
    clone.__dict__.update(saver.__dict__)
    clone.serde = Marked()
    asked = [saver, clone, saver, clone, saver]
    found = await asyncio.gather(
        *(one.aget_tuple(config_of(f"t{number}")) for number, one in enumerate(asked)), return_exceptions=True
    )
    assert isinstance(found[3], TimeoutError | StoreUnavailableError)
    assert ["marked" in repr(one) for one in found] == [False, True, False, False, False]
    assert [messages(one)[0] for one in found[::2]] == ["to t0", "to t2", "to t4"]


async def test_a_caller_that_is_cancelled_loses_its_answer_alone(saver: Saver) -> None:
    threads = await short_ones(saver, 4)
    tasks = [asyncio.create_task(saver.aget_tuple(config_of(name))) for name in threads]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[1].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found[:2]] == [asyncio.CancelledError] * 2
    assert [messages(one)[0] for one in found[2:]] == ["to t2", "to t3"]
    assert messages(await saver.aget_tuple(config_of("t0")))[0] == "to t0"


async def test_where_there_is_no_database_all_are_told(locking_settings: SkeinoSettings) -> None:
    async with open_checkpointer(locking_settings) as closed:
        pass
    found = await asyncio.gather(
        *(closed.aget_tuple(config_of(f"t{index}")) for index in range(3)), return_exceptions=True
    )
    assert [type(one) for one in found] == [StoreUnavailableError] * 3


async def test_graphs_that_begin_together_go_on_from_their_own_states(saver: Saver) -> None:
    graph = plain(saver)
    for turn in range(3):
        await asyncio.gather(
            *(graph.ainvoke({"messages": [f"{turn} of {n}"]}, config_of(f"thread {n}")) for n in range(50))
        )
    for number in range(50):
        found = (await graph.aget_state(config_of(f"thread {number}"))).values["messages"]
        assert found[::2] == [f"{turn} of {number}" for turn in range(3)]
