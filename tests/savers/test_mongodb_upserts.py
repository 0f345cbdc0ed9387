"""What MongoDB is asked to insert is what the stock saver's upserts make: also where a document is there already."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6
from pymongo import MongoClient, UpdateOne
from pymongo.errors import BulkWriteError, ConnectionFailure, WriteError

from skeino.persistence.mongodb import upserts
from skeino_asgi import RunTracker
from tests.contract.test_mongodb_server import failing, settings_for
from tests.savers.graphs import config_of
from tests.savers.test_mongodb_batches import METADATA, a_checkpoint
from tests.servers.mongodb import LocalMongoServer

NEW: Any = {"$set": {"type": "msgpack", "checkpoint": b"1"}}
PLACE: Any = {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}

Write = Callable[[Any], Awaitable[Any]]


@pytest.fixture
async def tracker(mongodb_uri: str) -> AsyncIterator[RunTracker]:
    tracker = RunTracker(settings_for(mongodb_uri))
    async with tracker.lifespan():
        yield tracker


@pytest.fixture
def insertions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents were inserted together, each time that it was tried."""
    sizes: list[int] = []
    find_out = upserts.new_documents

    def noting(operations: Any) -> Any:
        documents = find_out(operations)
        if documents:
            sizes.append(len(documents))
        return documents

    monkeypatch.setattr(upserts, "new_documents", noting)
    return sizes


def putting(thread_id: str, checkpoint: Any) -> Write:
    return lambda saver: saver.aput(config_of(thread_id, checkpoint_ns=""), checkpoint, METADATA, {})


async def at_once(tracker: RunTracker, writes: dict[str, Write], *, in_runs: bool) -> None:
    """Let each thread be written to, by a run of its own or by nobody's."""
    ready = asyncio.Barrier(len(writes))

    async def in_run(thread_id: str, write: Write) -> None:
        async with tracker.run(thread_id=thread_id):
            assert tracker.checkpointer is not None
            await tracker.checkpointer.aget_tuple(config_of(thread_id))
            await ready.wait()
            await write(tracker.checkpointer)

    if in_runs:
        await asyncio.gather(*(in_run(*one) for one in writes.items()))
    else:
        await asyncio.gather(*(write(tracker.checkpointer) for write in writes.values()))


@pytest.mark.parametrize("in_runs", [False, True])
async def test_what_is_there_already_is_changed_as_the_stock_saver_changes_it(
    tracker: RunTracker, insertions: list[int], in_runs: bool
) -> None:
    threads = {f"t{number}": str(uuid6()) for number in range(20)}
    old = [name for number, name in enumerate(threads) if number % 5 == 0]

    def writing(thread_id: str, what: str) -> Write:
        place = config_of(thread_id, checkpoint_ns="", checkpoint_id=threads[thread_id])

        async def write(saver: Any) -> None:
            checkpoint = {**a_checkpoint(what), "id": threads[thread_id]}
            await asyncio.gather(
                saver.aput(config_of(thread_id, checkpoint_ns=""), checkpoint, METADATA, {}),
                saver.aput_writes(place, [("messages", what)], "task"),
                saver.aput_writes(place, [("__error__", what)], "task"),
            )

        return write

    await at_once(tracker, {name: writing(name, "first") for name in old}, in_runs=in_runs)
    insertions.clear()
    await at_once(tracker, {name: writing(name, "second") for name in threads}, in_runs=in_runs)
    assert max(insertions) > len(old), "it was not tried"
    assert tracker.checkpointer is not None
    for name in threads:
        [found] = [one async for one in tracker.checkpointer.alist(config_of(name))]
        assert found.checkpoint["channel_values"]["messages"] == ["second"]
        values = {channel: value for _, channel, value in found.pending_writes or []}
        assert values == {"messages": "first" if name in old else "second", "__error__": "second"}


@pytest.mark.parametrize("in_runs", [False, True])
async def test_what_may_be_changed_but_not_inserted_is_changed(
    tracker: RunTracker, mongodb_uri: str, in_runs: bool
) -> None:
    checkpoint = a_checkpoint("one")
    await at_once(tracker, {"t": putting("t", checkpoint)}, in_runs=in_runs)
    with MongoClient[Any](mongodb_uri) as client:
        client.get_default_database().command(
            {
                "collMod": "checkpoints",
                "validator": {"made_before": True},
                "validationLevel": "moderate",  # what does not pass already may be changed
            }
        )
    checkpoint["channel_values"] = {"messages": ["two"]}
    await at_once(tracker, {"t": putting("t", checkpoint)}, in_runs=in_runs)
    assert tracker.checkpointer is not None
    found = await tracker.checkpointer.aget_tuple(config_of("t"))
    assert found is not None
    assert found.checkpoint["channel_values"]["messages"] == ["two"]


@pytest.mark.parametrize("in_runs", [False, True])
@pytest.mark.parametrize("index", [{}, {"unique": True, "partialFilterExpression": {"type": "x"}}])
async def test_where_places_are_not_unique_nothing_is_inserted_twice(
    mongodb_uri: str, insertions: list[int], in_runs: bool, index: dict[str, Any]
) -> None:
    with MongoClient[Any](mongodb_uri) as client:
        collection = client.get_default_database()["checkpoints"]
        place = [("thread_id", 1), ("checkpoint_ns", 1), ("checkpoint_id", -1)]
        collection.create_index(place, **index)
        tracker = RunTracker(settings_for(mongodb_uri))
        async with tracker.lifespan():
            checkpoints = {f"t{number}": a_checkpoint() for number in range(10)}
            for _ in range(2):
                writes = {name: putting(name, one) for name, one in checkpoints.items()}
                await at_once(tracker, writes, in_runs=in_runs)
        assert collection.count_documents({}) == 10
    assert not insertions


@pytest.mark.parametrize(
    "operation",
    [
        UpdateOne(PLACE, NEW),
        UpdateOne({**PLACE, "checkpoint.ts": "1"}, NEW, upsert=True),
        UpdateOne(PLACE, {"$set": {"metadata.source": "loop"}}, upsert=True),
        UpdateOne(PLACE, {"$inc": {"step": 1}}, upsert=True),
        UpdateOne(PLACE, {**NEW, "$setOnInsert": {"step": 1}}, upsert=True),
        UpdateOne(PLACE, [NEW], upsert=True),
        UpdateOne({"$or": [PLACE]}, NEW, upsert=True),
        UpdateOne({**PLACE, "checkpoint_id": {"$gt": "0"}}, NEW, upsert=True),
    ],
    ids=["none", "a part", "a part is set", "counted", "twofold", "computed", "one of several", "a range"],
)
def test_what_is_more_than_a_document_stays_an_upsert(operation: UpdateOne) -> None:
    assert upserts.new_documents([UpdateOne(PLACE, NEW, upsert=True)]) is not None
    assert upserts.new_documents([UpdateOne(PLACE, NEW, upsert=True), operation]) is None


def test_what_is_refused_is_told_by_where_it_is_and_the_rest_is_written(mongodb_uri: str) -> None:
    with MongoClient[Any](mongodb_uri) as client:
        database = client.get_default_database()
        database.create_collection("places", validator={"type": {"$ne": "refused"}})
        collection = database["places"]
        collection.create_index("thread_id", unique=True)
        collection.insert_one({"thread_id": "t1", "type": "old"})
        operations = [
            UpdateOne({"thread_id": f"t{number}"}, {"$set": {"type": kind}}, upsert=True)
            for number, kind in enumerate(["a", "b", "refused", "d"])
        ]
        assert upserts.write(collection, operations, insert=True) == {2}
        kinds = {one["thread_id"]: one["type"] for one in collection.find()}
        assert kinds == {"t0": "a", "t1": "b", "t3": "d"}
        for number, refused_alone in enumerate([set(), set(), {0}]):
            assert upserts.write(collection, operations[number : number + 1], insert=True) == refused_alone
        for chosen in (operations[:2], operations[2:], operations[1:2], operations[2:3]):
            with client.start_session() as session:
                with pytest.raises((WriteError, BulkWriteError)), session.start_transaction():
                    upserts.write_within(session, collection, chosen, insert=True)
        upserts.write_within(None, collection, operations[:2], insert=False)
        assert upserts.write(collection, [], insert=True) == set()


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("names", ["a", "abc"])
def test_what_may_not_be_durable_is_told(mongodb_uri: str, insert: bool, names: str) -> None:
    late = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication timed out"}
    with MongoClient[Any](mongodb_uri, appname="skeino") as client:
        collection = client.get_default_database()["places"]
        operations = [UpdateOne({"thread_id": name}, {"$set": {"type": "a"}}, upsert=True) for name in names]
        with failing(mongodb_uri, ["insert", "update"], writeConcernError=late):
            assert upserts.write(collection, operations, insert=insert) == {*range(len(names))}


def test_what_a_connection_that_breaks_leaves_unsaid_is_only_what_was_there(mongodb_uri: str) -> None:
    with MongoClient[Any](mongodb_uri, appname="skeino") as client:
        collection = client.get_default_database()["places"]
        collection.create_index("thread_id", unique=True)
        collection.insert_one({"thread_id": "b", "type": "old"})
        operations = [UpdateOne({"thread_id": name}, {"$set": {"type": "a"}}, upsert=True) for name in "abc"]
        with failing(mongodb_uri, ["update"], times=2, closeConnection=True):  # the driver tries each twice
            assert upserts.write(collection, operations, insert=True) == {1}
        with failing(mongodb_uri, ["update"], times=2, closeConnection=True), pytest.raises(ConnectionFailure):
            upserts.write(collection, operations, insert=False)


async def test_without_transactions_what_comes_after_a_failure_is_written_all_the_same(
    standalone_mongodb_server: LocalMongoServer,
) -> None:
    uri = standalone_mongodb_server.create_database()
    tracker = RunTracker(settings_for(uri))
    threads = {f"t{number}": a_checkpoint() for number in range(10)}
    failed: list[str] = []

    def writing(thread_id: str) -> Write:
        async def write(saver: Any) -> None:
            place = config_of(thread_id, checkpoint_ns="", checkpoint_id=threads[thread_id]["id"])
            answers = await asyncio.gather(
                putting(thread_id, threads[thread_id])(saver),
                saver.aput_writes(place, [("messages", "pending")], "task"),
                return_exceptions=True,
            )
            failed.extend(f"{thread_id}: {answer}" for answer in answers if isinstance(answer, Exception))

        return write

    with MongoClient[Any](uri) as client:
        database = client.get_default_database()
        async with tracker.lifespan():
            database.command("collMod", "checkpoints", validator={"thread_id": {"$ne": "t3"}})
            await at_once(tracker, {name: writing(name) for name in threads}, in_runs=True)
        assert [one.split(" ")[0] for one in failed] == ["t3:"], failed
        assert {*database["checkpoints"].distinct("thread_id")} == {*threads} - {"t3"}
        assert {*database["checkpoint_writes"].distinct("thread_id")} == {*threads}
    standalone_mongodb_server.drop_database(uri)
