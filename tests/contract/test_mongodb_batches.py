"""Starts, claims, releases and ends of runs that share a MongoDB transaction: what each would be alone, only sooner."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from skeino import SkeinoSettings
from skeino.errors import StoreError, StoreUnavailableError, ThreadBusyError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol, Persistence, open_persistence
from skeino.persistence.claims import Queue
from skeino.persistence.mongodb import run_writes
from skeino.persistence.mongodb.batches import Attachment, Batch, End, Release, Start, Write
from skeino.persistence.mongodb.documents import run_document, thread_document
from skeino.persistence.mongodb.run_writes import RunWrites
from skeino.persistence.queries import checked_finish, new_run, new_thread
from skeino.runs import new_id
from skeino.testing import T0, WORKER, at, ending, everything, started, the_run, the_thread
from skeino.testing.claims import claiming, taken
from skeino.testing.making import ended_in_turn
from tests.contract.backends import CLIENT, MONGODB, MOTOR
from tests.contract.test_mongodb_server import failing, settings_for
from tests.servers.mongodb import LocalMongoServer


@pytest.fixture(params=[MONGODB, MOTOR, CLIENT])
def settings(settings: SkeinoSettings) -> SkeinoSettings:
    """An empty database, over each kind of client."""
    return settings


@pytest.fixture
async def other(persistence: Persistence, module_mongodb: str) -> AsyncIterator[MetadataStoreProtocol]:
    """The same rows in another process, as it were."""
    async with open_persistence(settings_for(module_mongodb)) as opened:
        yield opened.metadata_store


@pytest.fixture
def batches(store: MetadataStoreProtocol, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes were in each batch of the store, as they come."""
    return sizes_of_batches(run_writes_of(store), monkeypatch)


def sizes_of_batches(writer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    write = writer._write_batch

    async def noting(writes: Sequence[Any]) -> Any:
        sizes.append(len(writes))
        return await write(writes)

    monkeypatch.setattr(writer._group, "_write_batch", noting)
    return sizes


def run_writes_of(store: MetadataStoreProtocol) -> RunWrites:
    found: RunWrites = store._run_writes  # type: ignore[attr-defined]
    return found


@contextmanager
def rows_of(uri: str) -> Iterator[Any]:
    """The database, seen by another client."""
    with MongoClient[Any](uri) as client:
        yield client.get_default_database()


# ── Each as if it were alone ─────────────────────────────────────────────────────────────────────────────


async def test_hundreds_of_runs_at_once_are_all_there(store: MetadataStoreProtocol, batches: list[int]) -> None:
    async def live(number: int) -> str:
        run_id = await started(store, None if number % 3 else f"t{number}", metadata={"number": number})
        if number % 3 == 1:
            await store.attach_thread(run_id, f"t{number}", owner=None)
        end = ending(run_id, thread_id=f"t{number - 2}", checkpoint_count=number, metadata={"end": number})
        assert await store.finish_run(end)
        return run_id

    ids = await asyncio.gather(*(live(number) for number in range(300)))
    assert max(batches) > 100
    for number, run_id in enumerate(ids):
        row = await the_run(store, run_id)
        assert (row["status"], row["checkpoint_count"]) == ("success", number)
        assert row["metadata"] == {"number": number, "end": number}
        assert row["thread_id"] == f"t{number if number % 3 < 2 else number - 2}"
    threads, _ = await everything(store)
    assert {row["thread_id"]: row["status"] for row in threads} == {
        f"t{number}": "idle" for number in range(300) if number % 3 < 2
    }


@pytest.mark.parametrize("seed", range(25))
async def test_a_batch_comes_to_what_its_writes_come_to_one_by_one(
    store: MetadataStoreProtocol, module_mongodb: str, seed: int
) -> None:
    """Few threads, runs and owners, so that the writes of a batch meet: in any order, repeated, and refused."""
    writer = run_writes_of(store)
    before, writes = some_writes(random.Random(seed), 6), some_writes(random.Random(1000 + seed), 30)
    outcomes = []
    for one_by_one in (True, False):
        with rows_of(module_mongodb) as database:
            for collection in ("app_threads", "app_runs"):
                database[collection].delete_many({})
        for write in before:
            with suppress(ThreadNotFoundError):
                await writer._alone(write)
        if one_by_one:
            answers = await asyncio.gather(*map(in_turn(writer), writes), return_exceptions=True)
        else:
            answers = [*await writer._write_batch(writes)]
        with rows_of(module_mongodb) as database:
            stored = [[*database[name].find(sort=[("_id", 1)])] for name in ("app_threads", "app_runs")]
        outcomes.append(([*map(repr, answers)], [sorted(map(fields_of, one)) for one in stored]))
    assert outcomes[0] == outcomes[1]
    assert any("ThreadNotFoundError" in answer for answer in outcomes[0][0])


def in_turn(writer: RunWrites) -> Callable[[Write], Any]:
    lock = asyncio.Lock()

    async def one(write: Write) -> Any:
        async with lock:
            return await writer._alone(write)

    return one


def fields_of(document: dict[str, Any]) -> str:
    return repr(sorted(document.items()))


def some_writes(chance: random.Random, count: int) -> list[Write]:
    ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(5)]
    names: list[str | None] = ["a", "b", "c"]

    def start() -> Write:
        thread_id, owner = chance.choice([*names, None]), chance.choice(["ann", "ann", "bob"])
        row = new_run(
            chance.choice(ids),
            chance.choice([WORKER, WORKER, "other"]),
            {"thread_id": thread_id, "owner": owner, "created_at": at(chance.random()), "metadata": {"k": 1}},
        )
        document, thread = run_document(row), None
        if thread_id is None or chance.random() < 0.3:
            document["thread_id"] = None
        else:
            thread = thread_document(new_thread(thread_id, {"owner": owner}, row["created_at"]))
        return Start(document, thread_id, thread)

    def attach() -> Write:
        owner = chance.choice(["ann", "ann", "bob"])
        thread = new_thread(str(chance.choice(names)), {"owner": owner}, at(chance.random()))
        return Attachment(chance.choice(ids), thread_document(thread), claims=chance.random() < 0.5)

    def release() -> Write:
        return Release(chance.choice(ids), str(chance.choice(names)))

    def end() -> Write:
        finish = ending(
            chance.choice(ids),
            status=chance.choice(["success", "error"]),
            finished_at=at(chance.choice([-5, 1, 2])),
            thread_id=chance.choice([*names, None]),
            thread_status=chance.choice(["idle", "interrupted", "error", None]),
            metadata=chance.choice([{}, {"k": 2, "$set": "$k"}]),
        )
        return End(checked_finish(finish))

    return [chance.choice([start, start, attach, attach, release, end, end])() for _ in range(count)]


async def test_start_attachment_and_end_of_one_run_in_one_batch(
    store: MetadataStoreProtocol, batches: list[int]
) -> None:
    run_id = new_id()
    answers: Any = await asyncio.gather(
        started(store, run_id=run_id, created_at=T0),
        store.attach_thread(run_id, "t", owner=None),
        ended_in_turn(store, ending(run_id, thread_status="interrupted")),
        ended_in_turn(store, ending(run_id, thread_status="interrupted")),
        ended_in_turn(store, ending(run_id, status="error")),
    )
    assert batches == [5]
    assert answers == [run_id, None, True, True, False]
    assert (await the_run(store, run_id))["thread_id"] == "t"
    assert (await the_thread(store, "t"))["status"] == "interrupted"


async def test_a_write_that_comes_alone_is_alone(store: MetadataStoreProtocol, batches: list[int]) -> None:
    run_id = await started(store, "t")
    assert await store.finish_run(ending(run_id))
    assert batches == [1, 1]


# ── A bad one among good ones ────────────────────────────────────────────────────────────────────────────


async def test_a_thread_of_another_owner_is_refused_alone(store: MetadataStoreProtocol, batches: list[int]) -> None:
    await store.create_thread("anns", owner="ann")
    before = await the_thread(store, "anns")
    starts = [started(store, "anns" if number == 7 else f"t{number}", owner="bob") for number in range(20)]
    answers = await asyncio.gather(*starts, return_exceptions=True)
    assert batches == [20]
    assert [number for number, answer in enumerate(answers) if isinstance(answer, ThreadNotFoundError)] == [7]
    assert await the_thread(store, "anns") == before
    assert len(await store.search_runs()) == 19


async def test_a_row_that_the_server_refuses_fails_alone(
    store: MetadataStoreProtocol, batches: list[int], module_mongodb: str
) -> None:
    with refusing(module_mongodb, {"worker_id": {"$ne": "refused"}}):
        workers = ["refused" if number == 7 else WORKER for number in range(20)]
        starts = [started(store, f"t{number}", worker_id=worker) for number, worker in enumerate(workers)]
        answers = await asyncio.gather(*starts, return_exceptions=True)
    assert batches == [20]
    assert [number for number, answer in enumerate(answers) if isinstance(answer, StoreError)] == [7]
    assert await store.get_thread("t7") is None
    assert len(await store.search_runs()) == len(await store.search_threads()) == 19


async def test_after_a_refusal_the_writes_of_one_run_keep_their_order(
    store: MetadataStoreProtocol, batches: list[int], module_mongodb: str
) -> None:
    def life(run_id: str) -> list[Any]:
        attachment = store.attach_thread(run_id, f"t-{run_id}", owner=None)
        return [started(store, run_id=run_id), attachment, ended_in_turn(store, ending(run_id))]

    ids = [new_id() for _ in range(30)]
    with refusing(module_mongodb, {"worker_id": {"$ne": "refused"}}):
        answers = await asyncio.gather(
            started(store, worker_id="refused"),
            *(write for run_id in ids for write in life(run_id)),
            return_exceptions=True,
        )
    assert batches == [91]
    assert isinstance(answers[0], StoreError)
    assert answers[3::3] == [True] * 30
    assert {row["thread_id"] for row in await store.search_runs()} == {f"t-{run_id}" for run_id in ids}
    assert {row["status"] for row in await store.search_threads()} == {"idle"}


@contextmanager
def refusing(uri: str, validator: dict[str, Any]) -> Iterator[None]:
    """Have the server refuse all runs but these."""
    with rows_of(uri) as database:
        database.command("collMod", "app_runs", validator=validator)
        try:
            yield
        finally:
            database.command("collMod", "app_runs", validator={})


async def test_a_thread_that_somebody_holds_keeps_nobody_else_waiting(
    store: MetadataStoreProtocol, module_mongodb: str
) -> None:
    """A process that was killed in a transaction holds what it has written for a minute."""
    await store.create_thread("held")
    with MongoClient[Any](module_mongodb) as client, client.start_session() as session:
        with session.start_transaction():
            threads = client.get_default_database()["app_threads"]
            threads.update_one({"_id": "held"}, {"$inc": {"ties": 1}}, session=session)
            held = [asyncio.create_task(started(store, "held")) for _ in range(2)]
            await asyncio.sleep(0)
            begin = time.monotonic()
            for _ in range(3):
                await asyncio.gather(*(started(store, f"t{number}") for number in range(20)))
                assert not any(task.done() for task in held)
            assert time.monotonic() - begin < 5
            session.abort_transaction()
    await asyncio.gather(*held)
    assert len(await store.search_runs(thread_id="held")) == 2


async def test_what_comes_later_on_a_thread_goes_after_what_takes_long_on_it(
    store: MetadataStoreProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, writer, patience = await started(store), run_writes_of(store), 0.05
    first = await taken(store, run_id)
    release = writer._release

    async def slow_release(write: Release) -> None:
        await asyncio.sleep(6 * patience)
        await release(write)

    monkeypatch.setattr(run_writes, "_PATIENCE", patience)
    monkeypatch.setattr(writer, "_release", slow_release)
    leaving = asyncio.ensure_future(claiming(store).release_thread(run_id, "t"))
    await asyncio.sleep(3 * patience)  # the writer has gone on
    again, other = asyncio.create_task(taken(store, run_id)), asyncio.create_task(started(store, "u"))
    await other
    assert not leaving.done(), "who is on another thread does not wait"
    assert await again == first + 1
    assert leaving.done()
    assert await claiming(store).get_queue("t") == Queue((run_id,), frozenset({run_id}))
    assert not writer._last


async def test_what_waits_for_what_takes_too_long_is_given_up_with_its_caller(
    module_mongodb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_writes, "_PATIENCE", 0.05)
    async with open_persistence(settings_for(module_mongodb, operation_timeout=0.4)) as persistence:
        store, going_on = persistence.metadata_store, asyncio.Event()
        run_id, writer = await started(store), run_writes_of(store)

        async def slow_release(write: Release) -> None:
            await going_on.wait()

        monkeypatch.setattr(writer, "_release", slow_release)
        leaving = asyncio.ensure_future(claiming(store).release_thread(run_id, "waited-for"))
        await asyncio.sleep(0.1)  # the writer has gone on
        later = [asyncio.ensure_future(claiming(store).release_thread(run_id, "waited-for")) for _ in range(5)]
        answers = await asyncio.gather(*later, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        await asyncio.sleep(0.1)
        assert len(writer._apart) < 5, "those that waited do not go on one after the other"
        going_on.set()
        with suppress(StoreUnavailableError):
            await leaving


async def test_claims_and_releases_that_come_together_share_a_batch(
    store: MetadataStoreProtocol, batches: list[int]
) -> None:
    ids = [await started(store) for _ in range(10)]
    batches.clear()
    claims = [claiming(store).claim_thread(run_id, f"t{number % 5}", owner=None) for number, run_id in enumerate(ids)]
    fences = await asyncio.gather(*claims)
    assert [fence is None for fence in fences] == [False] * 5 + [True] * 5
    await asyncio.gather(
        *(claiming(store).release_thread(run_id, f"t{number}") for number, run_id in enumerate(ids[:5]))
    )
    assert batches == [10, 5]
    again = [await taken(store, run_id, f"t{number}") for number, run_id in enumerate(ids[5:])]
    assert again == [fence + 1 for fence in fences[:5] if fence is not None]


# ── Others write, too ────────────────────────────────────────────────────────────────────────────────────


async def test_what_somebody_changes_after_it_was_read_is_read_again(
    store: MetadataStoreProtocol, module_mongodb: str, monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    """Another process ends a run, deletes a thread, and makes one for another owner, while a batch is being made."""
    ends, loses = await started(store), await started(store, "gone")
    add, done = Batch.add, list[bool]()

    def interfered(batch: Batch, write: Write) -> Any:
        if not done:
            done.append(True)
            with rows_of(module_mongodb) as database:
                as_ended = {"active": False, "status": "error"}
                assert database["app_runs"].update_one({"_id": ends}, {"$set": as_ended}).modified_count
                assert database["app_runs"].delete_one({"_id": loses}).deleted_count
                assert database["app_threads"].delete_one({"_id": "gone"}).deleted_count
                thread = thread_document(new_thread("new", {"owner": "ann"}))
                database["app_threads"].insert_one(thread)
        return add(batch, write)

    monkeypatch.setattr(Batch, "add", interfered)
    batches.clear()
    lives = new_id()
    answers: Any = await asyncio.gather(
        ended_in_turn(store, ending(ends)),
        ended_in_turn(store, ending(loses)),
        started(store, "new", owner="bob"),
        started(store, "t", run_id=lives),
        ended_in_turn(store, ending(lives, http_status=204)),
        return_exceptions=True,
    )
    assert batches == [5]
    assert answers[:2] == [False, False]
    assert isinstance(answers[2], ThreadNotFoundError)
    assert answers[3:] == [lives, True]
    threads, runs = await everything(store)
    assert {row["thread_id"] for row in threads} == {"new", "t"}
    assert {row["run_id"]: (row["status"], row["http_status"]) for row in runs} == {
        ends: ("error", None),
        lives: ("success", 204),
    }


async def test_a_run_that_somebody_ends_after_it_was_read_stays_as_it_ended(
    store: MetadataStoreProtocol, module_mongodb: str, monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    """Nothing else of the batch meets anything: that the reads are the transaction's own is all that helps."""
    ends, lives = await started(store), await started(store)
    add, done = Batch.add, list[bool]()

    def interfered(batch: Batch, write: Write) -> Any:
        if not done:
            done.append(True)
            with rows_of(module_mongodb) as database:
                database["app_runs"].update_one({"_id": ends}, {"$set": {"active": False, "status": "error"}})
        return add(batch, write)

    monkeypatch.setattr(Batch, "add", interfered)
    batches.clear()
    answers = await asyncio.gather(store.finish_run(ending(ends)), store.finish_run(ending(lives)))
    assert (batches, [*answers]) == ([2], [False, True])
    assert [(await the_run(store, run_id))["status"] for run_id in (ends, lives)] == ["error", "success"]


async def test_batches_of_two_processes_and_deletions_leave_no_orphan(
    store: MetadataStoreProtocol, other: MetadataStoreProtocol
) -> None:
    async def live(one: MetadataStoreProtocol, number: int) -> None:
        run_id = await started(one, f"t{number % 3}")
        attached = await started(one)
        await one.attach_thread(attached, f"t{number % 4}", owner=None)
        await asyncio.gather(one.finish_run(ending(run_id)), one.finish_run(ending(attached)))

    async def delete(one: MetadataStoreProtocol, number: int) -> None:
        with suppress(ThreadNotFoundError, ThreadBusyError):
            await one.delete_thread(f"t{number % 4}", force=number % 2 == 0)

    async with asyncio.timeout(60):
        for _ in range(4):
            await asyncio.gather(
                *(live(one, number) for number in range(20) for one in (store, other)),
                *(delete(one, number) for number in range(4) for one in (store, other)),
            )
    threads, runs = await everything(store)
    assert {row["thread_id"] for row in runs} - {None} <= {row["thread_id"] for row in threads}
    assert {row["status"] for row in runs} == {"success"}
    assert {row["status"] for row in threads} == {"idle"}


# ── Callers that go, servers that fail, the end ──────────────────────────────────────────────────────────


async def test_a_caller_that_is_cancelled_in_a_batch_knows_that_its_run_is_there(
    store: MetadataStoreProtocol, batches: list[int]
) -> None:
    ids = [new_id() for _ in range(60)]
    tasks = [asyncio.create_task(started(store, f"t-{run_id}", run_id=run_id)) for run_id in ids]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    cancelled = 0
    for run_id, task in zip(ids, tasks, strict=True):
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
        assert await store.get_run(run_id) is not None
        assert await store.get_thread(f"t-{run_id}") is not None
    assert (batches, cancelled) == ([60], 30)


async def test_a_commit_whose_answer_is_lost_is_settled_for_the_whole_batch(
    module_mongodb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        sizes = sizes_of_batches(run_writes_of(store), monkeypatch)
        for times in (1, 3):
            with failing(module_mongodb, ["commitTransaction"], times=times, closeConnection=True):
                ids = await asyncio.gather(*(started(store, "settled") for _ in range(20)))
            with failing(module_mongodb, ["commitTransaction"], times=times, closeConnection=True):
                assert await asyncio.gather(*(store.finish_run(ending(run_id)) for run_id in ids)) == [True] * 20
            assert {(await the_run(store, run_id))["status"] for run_id in ids} == {"success"}
        assert sizes == [20] * 4


async def test_a_commit_that_takes_long_keeps_nobody_else_waiting(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        with failing(module_mongodb, ["commitTransaction"], blockConnection=True, blockTimeMS=4000):
            begin = time.monotonic()
            slow = [asyncio.create_task(started(store, f"slow-{number}")) for number in range(5)]
            await asyncio.sleep(0.1)
            await asyncio.gather(*(started(store, f"quick-{number}") for number in range(5)))
            assert time.monotonic() - begin < 3
            assert not any(task.done() for task in slow)
            assert len(await store.search_runs(ids=await asyncio.gather(*slow))) == 5


async def test_a_server_that_dies_at_a_commit_is_noticed_by_the_next(
    private_mongodb_server: LocalMongoServer,
) -> None:
    uri = private_mongodb_server.create_database()
    async with open_persistence(settings_for(uri, connect_timeout=1.0, operation_timeout=8)) as persistence:
        store = persistence.metadata_store
        await started(store, "t")
        with suppress(PyMongoError), failing(uri, ["commitTransaction"], blockConnection=True, blockTimeMS=20_000):
            caught = [asyncio.create_task(started(store, f"caught-{number}")) for number in range(5)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(private_mongodb_server.kill)
            begin = time.monotonic()
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                    await started(store, "next")
            assert time.monotonic() - begin < 6
            assert not any(task.done() for task in caught)
            await asyncio.to_thread(private_mongodb_server.start)
        answers = await asyncio.gather(*caught, return_exceptions=True)
        for number, answer in enumerate(answers):  # whether it was committed is known now, or said to be unknown
            assert isinstance(answer, str | StoreUnavailableError)
            if isinstance(answer, str):
                assert await store.get_thread(f"caught-{number}") is not None


async def test_a_batch_that_takes_too_long_is_given_up_by_all(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb, operation_timeout=0.5)) as persistence:
        store = persistence.metadata_store
        with failing(module_mongodb, ["find"], times=1, blockConnection=True, blockTimeMS=1500):
            begin = time.monotonic()
            answers = await asyncio.gather(
                *(started(store, f"t{number}") for number in range(20)), return_exceptions=True
            )
            assert time.monotonic() - begin < 1.4
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        assert all(answer.maybe_done for answer in answers if isinstance(answer, StoreUnavailableError))
        await asyncio.gather(*(started(store, f"t{number}") for number in range(20)))


async def test_closing_waits_for_what_is_being_written(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        starting = [asyncio.create_task(started(store, f"closing-{number}")) for number in range(400)]
        await asyncio.sleep(0.001)
    ids = await asyncio.gather(*starting)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await started(store, "late")
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        rows = await persistence.metadata_store.search_runs(ids=ids, limit=1000)
    assert len(rows) == 400


async def test_closing_waits_for_what_goes_its_own_way(module_mongodb: str) -> None:
    with refusing(module_mongodb, {"worker_id": {"$ne": "refused"}}):
        async with open_persistence(settings_for(module_mongodb)) as persistence:
            store = persistence.metadata_store
            workers = ["refused", *[WORKER] * 50]
            starting = [asyncio.create_task(started(store, "own", worker_id=worker)) for worker in workers]
            while not run_writes_of(store)._apart:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*starting, return_exceptions=True)
    assert [isinstance(answer, StoreError) for answer in answers] == [True, *[False] * 50]
