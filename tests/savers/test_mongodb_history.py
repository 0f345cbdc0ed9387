"""Deleting, copying and pruning on MongoDB: outages, large threads, and a server without transactions."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from skeino import SkeinoSettings
from skeino.errors import StoreUnavailableError, ThreadExistsError
from skeino.persistence import open_persistence
from skeino.runs import new_id
from tests.savers.graphs import Saver, checkpoints, config_of, fanned_out, plain, said
from tests.servers.mongodb import LocalMongoServer, MongoServer

Work = Callable[[Saver], Coroutine[Any, Any, None]]

ALL_AT_ONCE: dict[str, Work] = {
    "prune": lambda saver: saver.aprune(["t"]),
    "copy": lambda saver: saver.acopy_thread("t", "copy"),
    "delete": lambda saver: saver.adelete_for_runs([new_id()]),
}


@contextmanager
def database(server: MongoServer, uri: str) -> Iterator[Database[dict[str, Any]]]:
    """What is stored, seen by another client."""
    with server.client() as client:
        yield client[uri.rpartition("/")[2].partition("?")[0]]


def settings_for(uri: str, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=uri, checkpointer_options=options)


@pytest.fixture
async def saver(mongodb_uri: str) -> AsyncIterator[Saver]:
    """Over a server that has transactions."""
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        yield persistence.checkpointer


@pytest.fixture
def alone_uri(standalone_mongodb_server: LocalMongoServer) -> Iterator[str]:
    uri = standalone_mongodb_server.create_database()
    yield uri
    standalone_mongodb_server.drop_database(uri)


@pytest.mark.parametrize("work", ALL_AT_ONCE.values(), ids=ALL_AT_ONCE)
async def test_a_server_that_is_down_is_noticed_as_soon_as_elsewhere(
    private_mongodb_server: LocalMongoServer, work: Work
) -> None:
    """PyMongo would try a transaction again for two minutes."""
    settings = settings_for(private_mongodb_server.create_database(), connect_timeout=1.0)
    async with open_persistence(settings) as persistence:
        graph = plain(persistence.checkpointer)
        await graph.ainvoke(said("hello"), config_of("t"))
        await asyncio.to_thread(private_mongodb_server.kill)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await work(persistence.checkpointer)
        assert time.monotonic() - begin < 5
        await asyncio.to_thread(private_mongodb_server.start)
        assert len((await graph.ainvoke(said("again"), config_of("t")))["messages"]) == 4


async def test_a_thread_of_thousands_of_checkpoints_is_copied_pruned_and_deleted(
    saver: Saver, mongodb_server: MongoServer, mongodb_uri: str
) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    with database(mongodb_server, mongodb_uri) as stored:
        first = stored.checkpoints.find_one({"thread_id": "t"}, {"_id": 0})
        assert first is not None
        run_id = new_id()
        stamped = {**first["metadata"], "run_id": [*saver.serde.dumps_typed(run_id)]}
        more = [{**first, "checkpoint_id": str(uuid6()), "metadata": stamped} for _ in range(2500)]
        stored.checkpoints.insert_many(more)
        await saver.acopy_thread("t", "copy")
        assert stored.checkpoints.count_documents({"thread_id": "copy"}) == 2503
        await saver.aprune(["t", *(f"none-{number}" for number in range(2500))])
        assert stored.checkpoints.count_documents({"thread_id": "t"}) == 1
        await saver.adelete_for_runs([*(new_id() for _ in range(2500)), run_id])
        assert stored.checkpoints.count_documents({"thread_id": "t"}) == 0
        assert stored.checkpoints.count_documents({"thread_id": "copy"}) == 3


async def test_a_thread_of_which_one_half_cannot_be_deleted_is_reported_when_both_have_been_tried(
    saver: Saver, mongodb_server: MongoServer, mongodb_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may go on with the thread: nothing of it may be deleted then."""
    await fanned_out(saver).ainvoke(said("hello"), config_of("t"))
    delete_many, ended = Collection.delete_many, list[str]()

    def unlucky(collection: Collection[Any], *arguments: Any) -> Any:
        if collection.name == "checkpoints":
            raise AutoReconnect
        time.sleep(0.2)
        delete_many(collection, *arguments)
        ended.append(collection.name)

    monkeypatch.setattr(Collection, "delete_many", unlucky)
    with pytest.raises(StoreUnavailableError):
        await saver.adelete_thread("t")
    assert ended == ["checkpoint_writes"]
    monkeypatch.undo()
    await saver.adelete_thread("t")
    with database(mongodb_server, mongodb_uri) as stored:
        for name in ("checkpoints", "checkpoint_writes"):
            assert stored[name].count_documents({"thread_id": "t"}) == 0


@pytest.mark.parametrize("uri", ["mongodb_uri", "alone_uri"])
async def test_of_several_copies_to_one_thread_one_is_made(request: pytest.FixtureRequest, uri: str) -> None:
    async with open_persistence(settings_for(request.getfixturevalue(uri))) as persistence:
        saver = persistence.checkpointer
        await fanned_out(saver).ainvoke(said("hello"), config_of("t"))
        whole = [(one.checkpoint["id"], one.pending_writes) for one in await checkpoints(saver, "t")]
        for number in range(10):
            target = f"copy-{number}"
            copies = (saver.acopy_thread("t", target) for _ in range(4))
            ends = await asyncio.gather(*copies, return_exceptions=True)
            assert ends.count(None) == 1
            assert {type(end) for end in ends if end is not None} == {ThreadExistsError}
            assert [(one.checkpoint["id"], one.pending_writes) for one in await checkpoints(saver, target)] == whole


async def test_a_copy_that_was_broken_off_is_made_again_without_transactions(
    standalone_mongodb_server: LocalMongoServer, alone_uri: str
) -> None:
    async with open_persistence(settings_for(alone_uri)) as persistence:
        saver = persistence.checkpointer
        await fanned_out(saver).ainvoke(said("hello"), config_of("t"))
        with database(standalone_mongodb_server, alone_uri) as stored:
            writes = [*stored.checkpoint_writes.find({"thread_id": "t"}, {"_id": 0})]
            half = writes[: len(writes) // 2]  # as a process leaves them that dies before the first checkpoint
            stored.checkpoint_writes.insert_many([{**write, "thread_id": "copy"} for write in half])
            assert await checkpoints(saver, "copy") == []
            await saver.acopy_thread("t", "copy")
            assert stored.checkpoint_writes.count_documents({"thread_id": "copy"}) == len(writes)
        assert len(await checkpoints(saver, "copy")) == len(await checkpoints(saver, "t"))
