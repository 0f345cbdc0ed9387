"""Checkpoints and pending writes that share a MongoDB bulk operation are the stock saver's, byte for byte."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import bson
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence import open_persistence
from skeino.persistence.group_commit import ThreadCommit
from tests.contract.test_mongodb_server import failing, settings_for
from tests.savers.graphs import config_of, plain, said

Saver = Any
METADATA: Any = {"source": "loop", "step": 1, "parents": {}}


@pytest.fixture
async def saver(mongodb_uri: str) -> AsyncIterator[Saver]:
    """Ours."""
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        yield persistence.checkpointer


@pytest.fixture
def batches(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes were in each bulk operation, as they come; those that were written alone are not among them."""
    return sizes_of_batches(saver, monkeypatch)


def sizes_of_batches(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    take = ThreadCommit._take

    def noting(group: ThreadCommit[Any], size: int) -> list[Any]:
        if size > 1:
            sizes.append(size)
        return take(group, size)

    monkeypatch.setattr(ThreadCommit, "_take", noting)
    return sizes


@pytest.fixture
def database(mongodb_uri: str, saver: Saver) -> Iterator[Database[dict[str, Any]]]:
    """What is stored, seen by another client."""
    with MongoClient[dict[str, Any]](mongodb_uri) as client:
        yield client.get_default_database()


def a_checkpoint(*messages: Any) -> Checkpoint:
    checkpoint = empty_checkpoint()
    checkpoint["id"] = str(uuid6())
    checkpoint["channel_values"] = {"messages": [*messages]}
    return checkpoint


def put(saver: Saver, thread_id: str, checkpoint: Checkpoint, metadata: Any = METADATA) -> Any:
    return saver.aput(config_of(thread_id, checkpoint_ns=""), checkpoint, metadata, {})


def put_writes(saver: Saver, thread_id: str, checkpoint_id: str, writes: Sequence[tuple[str, Any]], task: str) -> Any:
    return saver.aput_writes(config_of(thread_id, checkpoint_ns="", checkpoint_id=checkpoint_id), writes, task)


def stored(collection: Any) -> list[bytes]:
    """All of a collection's documents, but for their own ids."""
    return sorted(bson.encode(document) for document in collection.find({}, {"_id": 0}))


def names(collection: Any) -> set[str]:
    return set(collection.distinct("thread_id"))


async def test_hundreds_at_once_are_what_the_stock_saver_writes(
    saver: Saver, database: Database[dict[str, Any]], batches: list[int]
) -> None:
    name = f"{database.name}_stock"
    stock = MongoDBSaver(database.client, name)
    checkpoints = [a_checkpoint("hello", number, {"deep": [None, 1.5, b"raw"]}) for number in range(300)]
    writes: list[tuple[str, Any]] = [("messages", said("hello")), ("__error__", "it failed"), ("other", None)]
    try:
        configs = await asyncio.gather(
            *(put(saver, f"t{number}", one) for number, one in enumerate(checkpoints)),
            *(put_writes(saver, f"t{number}", one["id"], writes, "task") for number, one in enumerate(checkpoints)),
        )
        assert max(batches) > 100
        for number, one in enumerate(checkpoints):
            config = config_of(f"t{number}", checkpoint_ns="")
            assert stock.put(config, one, METADATA, {}) == configs[number]
            stock.put_writes(configs[number], writes, "task")
        for collection in ("checkpoints", "checkpoint_writes"):
            assert stored(database[collection]) == stored(database.client[name][collection])
    finally:
        database.client.drop_database(name)
    found = await saver.aget_tuple(config_of("t7"))
    assert found.checkpoint == checkpoints[7]
    assert len(found.pending_writes) == 3


async def test_one_document_several_times_in_a_batch_is_as_written_one_after_the_other(
    saver: Saver, batches: list[int]
) -> None:
    ids = [str(uuid6()) for _ in range(20)]
    puts, tasks = [], []
    for number in range(10):
        for checkpoint_id in ids:
            again = {**a_checkpoint(number), "id": checkpoint_id}
            puts.append(put(saver, "t", again, {**METADATA, "step": number}))  # type: ignore[arg-type]
            tasks.append(put_writes(saver, "t", checkpoint_id, [("messages", number)], "task"))
            tasks.append(put_writes(saver, "t", checkpoint_id, [("__error__", number)], "task"))
    await asyncio.gather(*puts)
    await asyncio.gather(*tasks)
    assert batches == [200, 256, 144]
    for checkpoint_id in ids:
        found = await saver.aget_tuple(config_of("t", checkpoint_ns="", checkpoint_id=checkpoint_id))
        assert (found.checkpoint["channel_values"]["messages"], found.metadata["step"]) == ([9], 9)
        values = {channel: value for _, channel, value in found.pending_writes}
        assert values == {"messages": 0, "__error__": 9}, (
            "an ordinary write stays as it was first, an error is the last"
        )


async def test_bad_ones_fail_alone(saver: Saver, database: Database[dict[str, Any]], batches: list[int]) -> None:
    await put(saver, "warm", a_checkpoint())
    database.command("collMod", "checkpoints", validator={"thread_id": {"$ne": "refused"}})
    checkpoints = [a_checkpoint(number) for number in range(20)]
    checkpoints[5] = a_checkpoint(lambda: None)
    checkpoints[9] = a_checkpoint("x" * (17 * 2**20))
    threads = ["refused" if number == 12 else f"t{number}" for number in range(20)]
    for left_out, kinds in (
        ({9}, {5: TypeError, 12: StoreError}),
        (set(), {5: TypeError, 9: StoreError, 12: StoreError}),
    ):
        chosen = [number for number in range(20) if number not in left_out]
        answers = await asyncio.gather(
            *(put(saver, threads[number], checkpoints[number]) for number in chosen), return_exceptions=True
        )
        failed = {number: type(one) for number, one in zip(chosen, answers, strict=True) if isinstance(one, Exception)}
        assert failed == kinds
        assert names(database["checkpoints"]) == {"warm", *threads} - {"t5", "t9", "refused"}
        for number, one in zip(chosen, answers, strict=True):
            if number not in kinds:
                assert one == config_of(threads[number], checkpoint_ns="", checkpoint_id=checkpoints[number]["id"])
        database["checkpoints"].delete_many({"thread_id": {"$ne": "warm"}})
    assert batches == [19, 20]


async def test_bad_writes_fail_alone_and_wholly_as_the_stock_saver_s_do(
    saver: Saver, database: Database[dict[str, Any]], batches: list[int]
) -> None:
    await put_writes(saver, "warm", "c", [("a", 1)], "task")
    database.command("collMod", "checkpoint_writes", validator={"channel": {"$ne": "refused"}})
    channels = ["refused" if number == 3 else f"c{number}" for number in range(10)]
    answers = await asyncio.gather(
        *(put_writes(saver, f"t{number}", "c", [("a", 1), (one, 2)], "task") for number, one in enumerate(channels)),
        put_writes(saver, "none", "c", [], "task"),
        return_exceptions=True,
    )
    assert [number for number, answer in enumerate(answers) if isinstance(answer, StoreError)] == [3, 10]
    assert answers[:3] == [None] * 3
    assert batches == [11]
    assert database["checkpoint_writes"].count_documents({"thread_id": {"$nin": ["warm", "t3"]}}) == 18


@pytest.mark.parametrize("slow", ["checkpoints", "checkpoint_writes"])
async def test_checkpoints_and_pending_writes_do_not_wait_for_each_other(
    saver: Saver, mongodb_uri: str, database: Database[dict[str, Any]], slow: str
) -> None:
    checkpoint = a_checkpoint()
    works = {
        "checkpoints": put(saver, "t", checkpoint),
        "checkpoint_writes": put_writes(saver, "t", checkpoint["id"], [("messages", 1)], "task"),
    }
    where = f"{database.name}.{slow}"
    with failing(mongodb_uri, ["insert"], namespace=where, blockConnection=True, blockTimeMS=1500):
        held_up = asyncio.create_task(works.pop(slow))
        await asyncio.sleep(0.1)
        for work in works.values():
            await asyncio.wait_for(work, 1)
        assert not held_up.done()
        await held_up
    assert names(database["checkpoints"]) == names(database["checkpoint_writes"]) == {"t"}


async def test_a_majority_that_is_late_is_asked_for_again(saver: Saver, mongodb_uri: str, batches: list[int]) -> None:
    await put(saver, "warm", a_checkpoint())
    late = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication timed out"}
    for times, expected in ((1, set()), (11, {StoreError})):
        with failing(mongodb_uri, ["insert", "update"], times=times, writeConcernError=late):
            answers = await asyncio.gather(
                *(put(saver, f"t{number}", a_checkpoint()) for number in range(10)), return_exceptions=True
            )
        assert {type(answer) for answer in answers if isinstance(answer, Exception)} == expected
    assert batches == [10, 10]


async def test_a_connection_that_breaks_breaks_the_batch(saver: Saver, mongodb_uri: str) -> None:
    with failing(mongodb_uri, ["insert", "update"], times=2, closeConnection=True):  # the driver tries each twice
        answers = await asyncio.gather(
            *(put(saver, f"t{number}", a_checkpoint()) for number in range(10)), return_exceptions=True
        )
    assert {type(answer) for answer in answers} == {StoreUnavailableError}
    await asyncio.gather(*(put(saver, f"t{number}", a_checkpoint()) for number in range(10)))


async def test_a_server_that_is_away_is_waited_for_once(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    tried: list[Any] = []

    def away(self: MongoDBSaver, *arguments: Any) -> None:
        self.checkpoint_collection.find_one({})  # which no batch has
        tried.append(arguments)
        raise AutoReconnect("it is away")

    monkeypatch.setattr(MongoDBSaver, "put", away)
    answers = await asyncio.gather(
        *(put(saver, f"t{number}", a_checkpoint()) for number in range(20)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreUnavailableError}
    assert (batches, len(tried)) == ([20], 1)


async def test_clones_with_another_serializer_share_a_batch(
    saver: Saver, batches: list[int], database: Database[dict[str, Any]]
) -> None:
    """As `with_allowlist()` makes them."""
    clone = object.__new__(type(saver))
    clone.__dict__.update(saver.__dict__)
    clone.serde = Marked()
    await asyncio.gather(*(put(one, f"t{number}", a_checkpoint()) for number, one in enumerate([saver, clone] * 10)))
    assert batches == [20]
    types = {one["thread_id"]: one["type"] for one in database["checkpoints"].find()}
    assert types == {f"t{number}": "marked" if number % 2 else "msgpack" for number in range(20)}


class Marked(JsonPlusSerializer):
    """Tells what it has written."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "marked", super().dumps_typed(obj)[1]


async def test_a_stock_saver_that_learns_to_do_more_is_left_to_it(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, batches: list[int], database: Database[dict[str, Any]]
) -> None:
    def looks_first(self: MongoDBSaver, *arguments: Any) -> Any:
        self.checkpoint_collection.count_documents({})
        return stock(self, *arguments)

    stock = MongoDBSaver.put
    monkeypatch.setattr(MongoDBSaver, "put", looks_first)
    await asyncio.gather(*(put(saver, f"t{number}", a_checkpoint()) for number in range(20)))
    assert batches == [20]
    assert len(names(database["checkpoints"])) == 20


async def test_a_caller_that_is_cancelled_loses_the_answer_alone(
    saver: Saver, database: Database[dict[str, Any]], batches: list[int]
) -> None:
    tasks = [asyncio.create_task(put(saver, f"t{number}", a_checkpoint())) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False] * 10
    await put(saver, "after", a_checkpoint())
    assert len(names(database["checkpoints"])) == 21
    assert batches == [20]


async def test_what_is_deleted_does_not_come_back_by_a_cancelled_call(
    saver: Saver, mongodb_uri: str, database: Database[dict[str, Any]]
) -> None:
    for slow in ("checkpoints", "checkpoint_writes"):
        where = f"{database.name}.{slow}"
        with failing(mongodb_uri, ["insert"], namespace=where, blockConnection=True, blockTimeMS=300):
            calls = [
                asyncio.create_task(call)
                for number in range(3)
                for call in (
                    put(saver, f"t{number}", a_checkpoint()),
                    put_writes(saver, f"t{number}", "c", [("a", 1)], "task"),
                )
            ]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*(saver.adelete_thread(f"t{number}") for number in range(3)))
        await saver.aput_writes(config_of("last", checkpoint_ns="", checkpoint_id="c"), [("a", 1)], "task")
        await put(saver, "last", a_checkpoint())
        assert names(database["checkpoints"]) == names(database["checkpoint_writes"]) == {"last"}


async def test_closing_refuses_both_kinds_at_once(mongodb_uri: str) -> None:
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        saver: Saver = persistence.checkpointer
        where = f"{mongodb_uri.rpartition('/')[2].partition('?')[0]}.checkpoints"
        with failing(mongodb_uri, ["insert"], namespace=where, blockConnection=True, blockTimeMS=500):
            written = asyncio.create_task(put(saver, "t", a_checkpoint()))
            await asyncio.sleep(0.1)
            closing = asyncio.create_task(saver._writes.close())
            await asyncio.sleep(0.1)
            for late in (put(saver, "t", a_checkpoint()), put_writes(saver, "t", "c", [("a", 1)], "task")):
                with pytest.raises(StoreUnavailableError, match="closed"):
                    await late
            assert not written.done()
            await closing
            assert written.done()


async def test_closing_waits_for_what_is_being_written(mongodb_uri: str) -> None:
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        saver: Saver = persistence.checkpointer
        writing = [
            asyncio.create_task(one)
            for number in range(400)
            for one in (
                put(saver, f"t{number}", a_checkpoint()),
                put_writes(saver, f"t{number}", "c", [("a", 1)], "task"),
            )
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*writing)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await put(saver, "late", a_checkpoint())
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        assert len(await persistence.checkpointer.athread_ids()) == 400  # type: ignore[attr-defined]


async def test_many_graphs_at_once_keep_their_own_states(saver: Saver, batches: list[int]) -> None:
    graph = plain(saver)

    async def chat(number: int) -> list[str]:
        for turn in range(3):
            await graph.ainvoke(said(f"{number}.{turn}"), config_of(f"t{number}"))
        state = await graph.aget_state(config_of(f"t{number}"))
        return [one for one in state.values["messages"] if one.startswith(f"{number}.")]

    assert isinstance(saver, BaseCheckpointSaver)
    assert await asyncio.gather(*map(chat, range(40))) == [[f"{n}.{turn}" for turn in range(3)] for n in range(40)]
    assert max(batches) > 5
