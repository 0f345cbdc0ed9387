"""No state without a thread, and no thread of another owner."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from skeino.errors import InvalidInputError, ThreadNotFoundError
from skeino.testing import everything
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, checkpoints, config_of, plain, said, stamps, synchronous

BAD_THREAD_IDS: list[Any] = [None, "", " ", 7, 0, True, b"t", ["t"], "x" * 256, "a\x00b", "\ud800", "a\nb"]
MISSING: list[Any] = [{}, {"configurable": {}}, {"configurable": None}]
BAD_CONFIGS: list[Any] = [
    *MISSING,
    *({"configurable": {"thread_id": bad, "checkpoint_ns": ""}} for bad in BAD_THREAD_IDS),
]


async def refuses_bad_threads(saver: Saver) -> None:
    """Every read and write of state, asynchronous and not, with every bad thread id."""
    in_a_thread = asyncio.to_thread
    writes: Any = [("messages", ["x"])]
    for config in BAD_CONFIGS:
        for operation in (
            saver.aput(config, empty_checkpoint(), {}, {}),
            saver.aput_writes(config, writes, "task"),
            saver.aget_tuple(config),
            saver.aget(config),
            in_a_thread(saver.put, config, empty_checkpoint(), {}, {}),
            in_a_thread(saver.put_writes, config, writes, "task"),
            in_a_thread(saver.get_tuple, config),
        ):
            assert await error_of(operation) is InvalidInputError, config
    for thread_id in BAD_THREAD_IDS:
        assert await error_of(saver.adelete_thread(thread_id)) is InvalidInputError
        assert await error_of(in_a_thread(saver.delete_thread, thread_id)) is InvalidInputError


async def test_a_graph_without_a_thread_is_refused(tracker: RunTracker, saver: Saver) -> None:
    """LangGraph makes text of numbers, and of None: `aget_state` and `aupdate_state` ask for the thread "None"."""
    graph = plain(saver)
    for bad in (None, "", " ", "a\x00b", "x" * 256):
        for operate in (
            lambda config: graph.ainvoke(said("hello"), config),
            lambda config: graph.aget_state(config),
            lambda config: graph.aupdate_state(config, said("hello")),
            lambda config: asyncio.to_thread(synchronous(saver).invoke, said("hello"), config),
            lambda config: asyncio.to_thread(synchronous(saver).update_state, config, said("hello")),
        ):
            config: Any = {"configurable": {"thread_id": bad}}
            assert await error_of(operate(config)) is InvalidInputError, bad
            async with tracker.run():
                config = {"configurable": {"thread_id": bad}}
                assert await error_of(operate(config)) is InvalidInputError, bad
    for config in ({}, {"configurable": {}}):
        assert await error_of(graph.ainvoke(said("hello"), config)) is not None
    assert [one async for one in saver.alist(None)] == []


async def error_of(operation: Awaitable[object]) -> type[BaseException] | None:
    """The class of what it raises; all operations of a table are awaited, whatever the first one does."""
    (result,) = await asyncio.gather(operation, return_exceptions=True)
    return type(result) if isinstance(result, BaseException) else None


async def test_state_without_a_thread_is_refused_without_a_run(saver: Saver) -> None:
    await refuses_bad_threads(saver)
    assert [one async for one in saver.alist(None)] == []


async def test_state_without_a_thread_is_refused_in_a_run(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run() as run:
        await refuses_bad_threads(saver)
        assert run.thread_id is None
    assert [one async for one in saver.alist(None)] == []
    threads, runs = await everything(tracker.metadata_store)
    assert (threads, len(runs)) == ([], 1)


async def test_listing_a_bad_thread_is_refused(tracker: RunTracker, saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    bad_ids = [bad for bad in BAD_THREAD_IDS if bad is not None]
    async with tracker.run():
        for bad in bad_ids:
            assert await error_of(checkpoints(saver, bad)) is InvalidInputError, bad
    for bad in bad_ids:
        assert await error_of(checkpoints(saver, bad)) is InvalidInputError, bad


async def test_another_owner_s_thread_is_neither_read_nor_written(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    async with tracker.run(thread_id="anns", owner="ann") as run:
        await graph.ainvoke(said("secret"), run.config)
    before = await checkpoints(saver, "anns")
    rows = await tracker.metadata_store.get_thread("anns")
    config = config_of("anns")
    async with tracker.run(owner="bob") as run:
        for operation in (
            saver.aget_tuple(config),
            saver.aput(config_of("anns", checkpoint_ns=""), empty_checkpoint(), {}, {}),
            saver.aput_writes(config_of("anns", checkpoint_ns="", checkpoint_id="x"), [("a", 1)], "task"),
            saver.adelete_thread("anns"),
            checkpoints(saver, "anns"),
            graph.ainvoke(said("hello"), config),
            graph.aget_state(config),
            graph.aupdate_state(config, said("hello")),
            tracker.persistence.delete_thread("anns"),
            asyncio.to_thread(saver.get_tuple, config),
            asyncio.to_thread(saver.put, config_of("anns", checkpoint_ns=""), empty_checkpoint(), {}, {}),
            asyncio.to_thread(saver.delete_thread, "anns"),
            asyncio.to_thread(lambda: list(saver.list(config))),
            asyncio.to_thread(synchronous(saver).invoke, said("hello"), config),
        ):
            assert await error_of(operation) is ThreadNotFoundError
        assert run.thread_id is None
        with pytest.raises(InvalidInputError, match="Name a thread_id"):
            _ = [one async for one in saver.alist(None)]
    assert await checkpoints(saver, "anns") == before
    assert await tracker.metadata_store.get_thread("anns") == rows


async def test_a_run_without_an_owner_does_not_write_an_owner_s_thread(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(thread_id="anns", owner="ann") as run:
        await plain(saver).ainvoke(said("secret"), run.config)
    before = await checkpoints(saver, "anns")
    async with tracker.run():
        with pytest.raises(ThreadNotFoundError):
            await plain(saver).ainvoke(said("hello"), config_of("anns"))
    assert await checkpoints(saver, "anns") == before


async def test_an_owner_s_run_reads_and_writes_threads_of_its_own(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    async with tracker.run(thread_id="old", owner="ann") as run:
        await graph.ainvoke(said("hello"), run.config)
    async with tracker.run(owner="ann") as run:
        assert (await graph.aget_state(config_of("old"))).values["messages"][0] == "hello"
        assert await checkpoints(saver, "old")
        await graph.ainvoke(said("hello"), config_of("new"))
        await graph.ainvoke(said("again"), config_of("old"))
    assert run.run_id in stamps(await checkpoints(saver, "new"))
    assert run.run_id in stamps(await checkpoints(saver, "old"))
    rows = await tracker.metadata_store.search_threads(owner="ann")
    assert {row["thread_id"]: row["status"] for row in rows} == {"old": "idle", "new": "idle"}
    async with tracker.run(owner="ann"):
        await tracker.persistence.delete_thread("old")
    assert await checkpoints(saver, "old") == []


async def test_deleting_a_thread_deletes_both_halves(tracker: RunTracker, saver: Saver) -> None:
    for thread_id in ("t", "kept"):
        async with tracker.run(thread_id=thread_id) as run:
            await plain(saver).ainvoke(said("hello"), run.config)
    async with tracker.run(thread_id="t"):
        await tracker.persistence.delete_thread("t")
    assert await checkpoints(saver, "t") == []
    assert await tracker.metadata_store.get_thread("t") is None
    assert await tracker.metadata_store.search_runs(thread_id="t") == []
    assert len(await checkpoints(saver, "kept")) == 3
    assert len(await tracker.metadata_store.search_runs(thread_id="kept")) == 1
    with pytest.raises(ThreadNotFoundError):
        await tracker.persistence.delete_thread("t")


async def test_a_deletion_that_is_cancelled_leaves_no_state_without_its_row(tracker: RunTracker, saver: Saver) -> None:
    for turns in range(8):  # of the event loop, until it is cancelled
        async with tracker.run(thread_id="t", owner="ann") as run:
            await plain(saver).ainvoke(said("secret"), run.config)
        deletion = asyncio.create_task(tracker.persistence.delete_thread("t"))
        for _ in range(turns):
            await asyncio.sleep(0)
        deletion.cancel()
        with suppress(asyncio.CancelledError):
            await deletion
        assert (await tracker.metadata_store.get_thread("t") is None) == (await checkpoints(saver, "t") == []), turns


async def test_state_that_a_deletion_has_left_behind_is_nobody_s_and_whoever_deleted_can_delete_it(
    tracker: RunTracker, saver: Saver
) -> None:
    for checkpoint_ns in ("", "of:a subgraph"):
        async with tracker.run(thread_id="t", owner="ann"):
            config = config_of("t", checkpoint_ns=checkpoint_ns)
            await saver.aput(config, empty_checkpoint(), {}, {})
        await tracker.metadata_store.delete_thread("t")  # and its process has died

        async with tracker.run(owner="ann"):
            await tracker.persistence.delete_thread("t")
            assert await error_of(tracker.persistence.delete_thread("t")) is ThreadNotFoundError

        assert [one async for one in saver.alist(config_of("t"))] == []
