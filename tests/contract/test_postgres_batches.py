"""PostgreSQL: runs that are written together are stored as one by one, and none suffers for another."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from skeino import SkeinoSettings
from skeino.errors import StoreError, StoreUnavailableError, ThreadNotFoundError
from skeino.persistence import MetadataStore, open_persistence
from skeino.persistence.postgres import PostgresDatabase, batches
from skeino.persistence.rows import RunFinish
from skeino.runs import new_id
from skeino.testing import WORKER, at, ending, everything, started, the_run, the_thread
from skeino.testing.making import ended_in_turn
from tests.contract.backends import empty
from tests.contract.postgres_writer import sent_by


@pytest.fixture
def settings(module_database: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=module_database)


@pytest.fixture
async def store(settings: SkeinoSettings, module_database: str) -> AsyncIterator[MetadataStore]:
    async with open_persistence(settings) as persistence:
        empty(module_database)
        assert isinstance(persistence.metadata_store, MetadataStore)
        yield persistence.metadata_store


@pytest.fixture
def statements(store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to write runs, from here on."""
    return sent_by(database_of(store).writer, monkeypatch)


def database_of(store: MetadataStore) -> PostgresDatabase:
    return store._database


# Calls that are made together, before the writer has had its turn, are one batch: `gather` makes them in their order.


async def test_what_comes_together_is_written_by_few_statements(store: MetadataStore, statements: list[str]) -> None:
    ids = await asyncio.gather(*(started(store, f"t{number}") for number in range(200)))
    assert statements == [batches.START_RUNS_ON_THREADS] * 2, "halves, for they are many"
    statements.clear()
    assert all(await asyncio.gather(*(store.finish_run(ending(run_id)) for run_id in ids)))
    assert statements == [batches.FINISH_RUNS] * 2
    threads, runs = await everything(store)
    assert [(run["status"], run["finished_at"]) for run in runs] == [("success", at(60))] * 200
    assert [(thread["status"]) for thread in threads] == ["idle"] * 200


async def test_what_comes_alone_is_written_by_a_plain_statement(store: MetadataStore, statements: list[str]) -> None:
    run_id = await started(store, "t")
    await store.finish_run(ending(run_id))
    await started(store)
    await started(store, "t", create_thread=False)
    kinds = (batches.START_ON_THREAD, batches.FINISH, batches.START, batches.START_READING)
    assert statements == [kind.one for kind in kinds]


async def test_no_start_waits_for_the_ends_that_came_before_it(store: MetadataStore, statements: list[str]) -> None:
    ids = [await started(store, "t"), await started(store)]
    statements.clear()
    ends = [asyncio.ensure_future(store.finish_run(ending(run_id))) for run_id in ids]
    await asyncio.gather(started(store, "t"), started(store, "t"))
    assert not any(end.done() for end in ends)
    assert all(await asyncio.gather(*ends))
    assert statements == [batches.START_RUNS_ON_THREADS, batches.FINISH_RUNS]


async def test_texts_are_the_same_whatever_the_client_s_encoding(module_database: str) -> None:
    parameters = conninfo_to_dict(module_database) | {"client_encoding": "LATIN1"}
    uri = make_conninfo("", **parameters)
    async with open_persistence(SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=uri)) as persistence:
        empty(module_database)
        store = persistence.metadata_store
        run_id = await started(store, "ü 🧵")
        await asyncio.gather(started(store, "ü 🧵"), started(store, "ü 🧵"))
        threads, runs = await everything(store)
        assert [thread["thread_id"] for thread in threads] == ["ü 🧵"]
        assert {run["thread_id"] for run in runs} == {"ü 🧵"}
        assert (await the_run(store, run_id))["thread_id"] == "ü 🧵"


async def test_a_start_that_is_committed_is_not_lost_with_the_ends_after_it(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await started(store)
    writer = database_of(store).writer
    fetch = writer._fetch_together

    async def away(statement: str, values: Any) -> Any:
        if statement in (batches.FINISH.one, batches.FINISH_RUNS):
            raise StoreUnavailableError("away")
        return await fetch(statement, values)

    monkeypatch.setattr(writer, "_fetch_together", away)
    end = asyncio.ensure_future(store.finish_run(ending(run_id)))
    new = await started(store, "t")
    with pytest.raises(StoreUnavailableError, match="away"):
        await end
    assert (await the_run(store, new))["status"] == (await the_run(store, run_id))["status"] == "running"


async def test_rows_written_together_are_those_written_one_by_one(
    store: MetadataStore, statements: list[str], module_database: str
) -> None:
    def begin(number: int) -> dict[str, Any]:
        made: dict[str, Any] = {
            "run_id": id_of(number),
            "created_at": at(number),
            "owner": OWNERS[number % 3],
            "metadata": VALUES[number % len(VALUES)],
            "kwargs": {"n": number, **VALUES[-number % len(VALUES)]},
            "thread_id": None if number % 5 == 4 else f"thread {number % 6} 'ü\"{{}},\\",
            "create_thread": number % 5 != 3,
        }
        return made

    def end(number: int) -> RunFinish:
        changes: dict[str, Any] = {
            "finished_at": at(60 - number),
            "status": ("success", "error", "interrupted", "timeout")[number % 4],
            "thread_id": f"thread {number % 6} 'ü\"{{}},\\" if number % 2 else None,
            "thread_status": ("idle", "interrupted", "error", None)[number % 4],
            "error": {"code": "c", "type": None, "message": "\"'\\ü"} if number % 4 == 1 else None,
            "http_status": None if number % 3 else 200 + number,
            "metadata": VALUES[(number + 1) % len(VALUES)],
            "checkpoint_count": number,
            "first_checkpoint_id": None if number % 3 else f"c{number}",
            "last_checkpoint_id": None if number % 3 else f"d{number}",
            "paused": number % 2 == 0,
        }
        return ending(id_of(number), **changes)

    async def attach(number: int) -> None:
        await store.attach_thread(id_of(number), f"late {number % 2}", owner=OWNERS[number % 3])

    stored = []
    for at_once in (False, True):
        empty(module_database)
        statements.clear()
        for step in (
            [lambda n=n: started(store, **begin(n)) for n in range(24)],
            [lambda n=n: attach(n) for n in range(4, 24, 5)],
            [lambda n=n: store.finish_run(end(n)) for n in range(24)],
        ):
            if at_once:
                answers = await asyncio.gather(*(call() for call in step), return_exceptions=True)
            else:
                answers = [(await asyncio.gather(call(), return_exceptions=True))[0] for call in step]
            stored.append([repr(answer) for answer in answers])
        stored.append(raw_rows(module_database))
    for alone, together in zip(stored[:4], stored[4:], strict=True):
        assert alone == together
    assert len(stored[3]) > 24
    assert {
        batches.START_RUNS,
        batches.START_RUNS_ON_THREADS,
        batches.START_READING_RUNS,
        batches.ATTACH_RUNS,
        batches.FINISH_RUNS,
    } <= set(statements)
    assert len(statements) < 24


async def test_the_first_of_several_owners_makes_the_thread(store: MetadataStore) -> None:
    answers = await asyncio.gather(
        *(started(store, "t", owner=owner) for owner in ("ann", "bob", "ann", None, "ann")), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [str, ThreadNotFoundError, str, ThreadNotFoundError, str]
    assert (await the_thread(store, "t"))["owner"] == "ann"
    assert len(await store.search_runs()) == 3


async def test_steps_of_one_run_keep_their_order_in_a_batch(store: MetadataStore) -> None:
    ids = [new_id() for _ in range(20)]
    calls: list[Any] = []
    for run_id in ids:
        calls += [
            started(store, run_id=run_id),
            store.attach_thread(run_id, f"t {run_id}", owner=None),
            ended_in_turn(store, ending(run_id)),
            store.attach_thread(run_id, "too late", owner=None),
        ]
    answers = await asyncio.gather(*calls)
    assert answers[2::4] == [True] * 20
    for run_id in ids:
        assert (await the_run(store, run_id))["thread_id"] == f"t {run_id}"


async def test_repetitions_in_a_batch_change_nothing(store: MetadataStore) -> None:
    run_id, other = new_id(), new_id()
    await asyncio.gather(
        *(started(store, thread, run_id=run_id) for thread in ("first", "second", "first")),
        started(store, run_id=other),
    )
    assert (await the_run(store, run_id))["thread_id"] == "first"
    assert await store.get_thread("second") is None
    ends = [ending(run_id), ending(run_id), ending(run_id, status="error", thread_status="error"), ending(other)]
    assert await asyncio.gather(*(store.finish_run(end) for end in ends)) == [True, True, False, True]
    assert (await the_run(store, run_id))["status"] == "success"
    assert (await the_thread(store, "first"))["status"] == "idle"


async def test_the_last_end_in_a_batch_says_how_the_thread_is_left(store: MetadataStore) -> None:
    ids = [await started(store, "t", created_at=at(0)) for _ in range(4)]
    left = (("error", 90), ("idle", 89), ("interrupted", 88), (None, 99))
    ends = [
        ending(run_id, thread_status=status, finished_at=at(seconds))
        for run_id, (status, seconds) in zip(ids, left, strict=True)
    ]
    assert all(await asyncio.gather(*(store.finish_run(end) for end in ends)))
    thread = await the_thread(store, "t")
    assert (thread["status"], thread["updated_at"]) == ("interrupted", at(90))


async def test_an_end_for_a_deleted_thread_fails_alone_and_brings_nothing_back(store: MetadataStore) -> None:
    ids = [await started(store, f"t{number}") for number in range(5)]
    reading = await started(store, "t2", create_thread=False)
    await store.delete_thread("t2", force=True)
    ends = [ending(run_id, thread_id=f"t{number}") for number, run_id in enumerate(ids)]
    answers = await asyncio.gather(*(store.finish_run(end) for end in [*ends, ending(reading, thread_id="t2")]))
    assert answers == [True, True, False, True, True, True]
    assert await store.get_thread("t2") is None
    assert (await the_run(store, reading))["thread_id"] is None


async def test_what_is_refused_alone_is_refused_in_a_batch(store: MetadataStore, statements: list[str]) -> None:
    ended, tied, loose = await asyncio.gather(started(store, "t"), started(store, "t"), started(store))
    await store.finish_run(ending(ended))
    await store.create_thread("bob's", owner="bob")
    reading = [await started(store, owner="ann") for _ in range(2)]

    statements.clear()
    ends = [ending(tied, worker_id="another"), ending(ended, status="error", thread_status="error")]
    ends += [ending(run_id, thread_id="bob's") for run_id in reading]
    assert await asyncio.gather(*(store.finish_run(end) for end in ends)) == [False, False, True, True]
    assert statements == [batches.FINISH_RUNS]
    found = [await the_run(store, run_id) for run_id in (tied, ended, *reading)]
    assert [(run["status"], run["thread_id"]) for run in found] == [
        ("running", "t"),
        ("success", "t"),
        ("success", None),
        ("success", None),
    ]
    assert [(await the_thread(store, name))["status"] for name in ("t", "bob's")] == ["busy", "idle"]

    statements.clear()
    answers = await asyncio.gather(
        *(started(store, name, owner="ann", create_thread=False) for name in ("bob's", "new")), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ThreadNotFoundError, str]
    assert statements[0] == batches.START_READING_RUNS

    statements.clear()
    await asyncio.gather(
        *(store.attach_thread(run_id, "other", owner=None) for run_id in (tied, ended, reading[0], loose))
    )
    assert statements == [batches.ATTACH_RUNS]
    found = [await the_run(store, run_id) for run_id in (tied, ended, reading[0], loose)]
    assert [run["thread_id"] for run in found] == ["t", "t", None, "other"]

    await store.delete_thread("t", ignore_run=tied, force=True)
    statements.clear()
    await asyncio.gather(started(store, "t", run_id=tied), started(store, "u"))
    assert statements[0] == batches.START_RUNS_ON_THREADS
    assert await store.get_thread("t") is None


async def test_a_bad_row_fails_alone(store: MetadataStore, statements: list[str], module_database: str) -> None:
    with only_good_rows(module_database):
        answers = await asyncio.gather(
            *(started(store, f"t{number}", metadata={"bad": number == 7}) for number in range(30)),
            return_exceptions=True,
        )
        assert statements[0] == batches.START_RUNS_ON_THREADS
        assert [number for number, answer in enumerate(answers) if not isinstance(answer, str)] == [7]
        assert isinstance(answers[7], StoreError)
        assert answers[7].sqlstate == "23514"
        ids = [answer for answer in answers if isinstance(answer, str)]
        done = await asyncio.gather(
            *(store.finish_run(ending(one, metadata={"bad": one == ids[3]})) for one in ids), return_exceptions=True
        )
        assert [number for number, answer in enumerate(done) if answer is not True] == [3]
    threads, runs = await everything(store)
    assert len(runs) == len(threads) == 29
    assert sum(run["status"] == "success" for run in runs) == 28


async def test_a_locked_row_keeps_no_neighbour_waiting(store: MetadataStore, module_database: str) -> None:
    ids = [await started(store, f"t{number}") for number in range(20)]
    with psycopg.connect(module_database) as other:
        other.execute("SELECT FROM app_threads WHERE thread_id = 't5' FOR UPDATE")
        begin = time.monotonic()
        ends = [asyncio.ensure_future(store.finish_run(ending(run_id))) for run_id in ids]
        assert await asyncio.gather(*(end for end in ends if end is not ends[5])) == [True] * 19
        for _ in range(3):
            await started(store, "another")
        held_up = asyncio.create_task(started(store, "t5"))
        await asyncio.gather(*(started(store, f"more {number}") for number in range(20)))
        assert time.monotonic() - begin < 3
        await asyncio.sleep(0.3)
        assert not ends[5].done()
        assert not held_up.done()
    assert await ends[5]
    await held_up


async def test_steps_of_one_run_keep_their_order_while_one_is_held_up(
    store: MetadataStore, module_database: str
) -> None:
    await store.create_thread("t")
    run_id = new_id()
    with psycopg.connect(module_database) as other:
        other.execute("SELECT FROM app_threads WHERE thread_id = 't' FOR UPDATE")
        start = asyncio.create_task(started(store, "t", run_id=run_id))
        await asyncio.sleep(0.4)
        end = asyncio.ensure_future(store.finish_run(ending(run_id)))
        others = [started(store, f"o{number}") for number in range(5)]
        await asyncio.gather(*others)
        assert not start.done()
        start.cancel()
        await asyncio.wait([end], timeout=0.3)
        assert not end.done()
    assert await end
    assert (await the_run(store, run_id))["status"] == "success"


async def test_a_write_that_is_held_up_too_long_is_given_up(settings: SkeinoSettings, module_database: str) -> None:
    hurried = settings.model_copy(update={"checkpointer_options": {"operation_timeout": 0.7}})
    async with open_persistence(hurried) as persistence:
        await persistence.metadata_store.create_thread("locked")
        with psycopg.connect(module_database) as other:
            other.execute("SELECT FROM app_threads WHERE thread_id = 'locked' FOR UPDATE")
            calls = (started(persistence.metadata_store, thread) for thread in ("locked", "free 1", "free 2"))
            answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailableError, str, str]
    assert answers[0].maybe_done  # type: ignore[union-attr]


async def test_cancelled_callers_neither_lose_nor_double_a_write(store: MetadataStore) -> None:
    ids = [new_id() for _ in range(60)]
    tasks = [asyncio.create_task(started(store, "t", run_id=run_id)) for run_id in ids]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(task.cancelled() for task in tasks) == 30
    assert {run["run_id"] for run in await store.search_runs()} == set(ids)


async def test_a_deleted_thread_does_not_come_back_by_a_cancelled_call(store: MetadataStore) -> None:
    for _ in range(5):
        await store.create_thread("t")
        starts = [asyncio.create_task(started(store, "t")) for _ in range(5)]
        await asyncio.sleep(0)
        for start in starts:
            start.cancel()
        await store.delete_thread("t", force=True)
        assert await everything(store) == ([], [])


async def test_closing_waits_for_what_was_asked(settings: SkeinoSettings, module_database: str) -> None:
    empty(module_database)
    ids = [new_id() for _ in range(600)]
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store
        tasks = [asyncio.create_task(started(store, "t", run_id=run_id)) for run_id in ids]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(not task.cancelled() for task in tasks) == 400
    with pytest.raises(StoreUnavailableError, match="closed"):
        await started(store)
    async with open_persistence(settings) as persistence:
        runs = [
            run for page in (0, 500) for run in await persistence.metadata_store.search_runs(limit=500, offset=page)
        ]
    assert {run["run_id"] for run in runs} == set(ids)


async def test_runs_are_interrupted_after_those_that_came_before(store: MetadataStore) -> None:
    before, after, ended = new_id(), new_id(), new_id()
    *_, number, _ = await asyncio.gather(
        started(store, run_id=before),
        started(store, run_id=ended),
        ended_in_turn(store, ending(ended)),
        store.interrupt_runs(WORKER, {"code": "c", "type": None, "message": "m"}),
        started(store, run_id=after),
    )
    assert number == 1
    found = [(await the_run(store, run_id))["status"] for run_id in (before, ended, after)]
    assert found == ["interrupted", "success", "running"]


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
async def test_a_batch_that_collides_is_repeated(
    store: MetadataStore, statements: list[str], monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    writer = database_of(store).writer
    fetch, failures = writer._fetch_together, [2]

    async def colliding(statement: str, values: Any) -> Any:
        answer = await fetch(statement, values) if not failures[0] else None
        if answer is None:
            failures[0] -= 1
            statements.append(statement)
            error = StoreUnavailableError("deadlock")
            error.sqlstate = sqlstate
            raise error
        return answer

    monkeypatch.setattr(writer, "_fetch_together", colliding)
    await asyncio.gather(*(started(store, f"t{number}") for number in range(5)))
    assert statements == [batches.START_RUNS_ON_THREADS] * 3


async def test_a_server_that_is_away_fails_a_batch_once(settings: SkeinoSettings, module_database: str) -> None:
    hasty = settings.model_copy(update={"checkpointer_options": {"pool_timeout": 0.5}})
    async with open_persistence(hasty) as persistence:
        store = persistence.metadata_store
        with no_connections(module_database):
            begin = time.monotonic()
            calls: list[Any] = [started(store, thread) for thread in ("a", "b", None, None)]
            calls += [store.attach_thread(new_id(), thread, owner=None) for thread in ("c", "d")]
            calls += [store.finish_run(ending(new_id())) for _ in range(2)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - begin < 1.2
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        assert not any(answer.maybe_done for answer in answers)  # type: ignore[union-attr]
        await started(store, "a")


async def test_a_run_may_have_its_threads_name(
    store: MetadataStore, module_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with only_good_rows(module_database):
        ids = [new_id() for _ in range(5)]
        calls = (started(store, one, run_id=one, metadata={"bad": one == ids[2]}) for one in ids)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, str) for answer in answers] == [True, True, False, True, True]
    await store.delete_thread(ids[0], force=True)
    assert not caplog.records


async def test_two_processes_that_end_runs_on_the_same_threads_do_not_hinder_each_other(
    settings: SkeinoSettings, store: MetadataStore
) -> None:
    async with open_persistence(settings) as second:
        stores = (store, second.metadata_store)
        begin = time.monotonic()
        for turn in range(8):
            names = [f"t{number}" for number in range(60)]
            ids = await asyncio.gather(
                *(started(one, name) for one, step in zip(stores, (1, -1), strict=True) for name in names[::step])
            )
            halves = ((store, ids[:60]), (second.metadata_store, ids[60:]))
            done = await asyncio.gather(*(one.finish_run(ending(run_id)) for one, half in halves for run_id in half))
            assert all(done), turn
        assert time.monotonic() - begin < 10


OWNERS = (None, "ann", "bob")
VALUES: Sequence[dict[str, Any]] = (
    {},
    {"a": [1, None, "ü\"'\\{}", {"b": 1e300, "c": 0.1, "d": -0.0, "e": 2**63 - 1}]},
    {"z": True, "y": {"x": {}}, "": " "},
    {"text": "x" * 100, "\u2028": "\U0001f600", "%s": "%(a)s $1"},
)


def id_of(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


def raw_rows(dsn: str) -> list[str]:
    """The rows as the database has them; the threads that `attach_thread` made have their times from the clock."""
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE app_threads SET created_at = now() WHERE thread_id LIKE 'late %'")
        connection.execute("UPDATE app_threads SET updated_at = now() WHERE updated_at > '2026-06-01'")
        connection.execute("UPDATE app_threads SET fence = 0")  # it begins with the clock
        rows = [
            row
            for table, order in (("app_threads", "thread_id"), ("app_runs", "run_id"))
            for (row,) in connection.execute(f"SELECT t::text FROM {table} t ORDER BY {order}").fetchall()  # type: ignore[arg-type,unused-ignore]
        ]
        now = connection.execute("SELECT now()::text").fetchone()
        assert now is not None
        return [row.replace(now[0], "now") for row in rows]


@contextmanager
def no_connections(dsn: str) -> Iterator[None]:
    """The server ends all connections to the database, and takes no new ones."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as connection:

        def allow(*, connections: bool) -> None:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {connections}')  # type: ignore[arg-type,unused-ignore]

        allow(connections=False)
        try:
            ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(ended, (name,))
            yield
        finally:
            allow(connections=True)


@contextmanager
def only_good_rows(dsn: str) -> Iterator[None]:
    """The table of runs refuses some, for a reason of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE app_runs ADD CONSTRAINT good CHECK (metadata -> 'bad' IS DISTINCT FROM 'true')")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE app_runs DROP CONSTRAINT good")
