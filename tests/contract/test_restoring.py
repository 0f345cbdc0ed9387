"""Rows put back as they were, times and all, on every backend."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from skeino import InvalidInputError, ThreadNotFoundError
from skeino.persistence import InMemoryMetadataStore, MetadataStoreProtocol, RunRow, ThreadRow
from skeino.persistence.rows import RUN_STATUSES, TERMINAL_STATUSES, RunError
from skeino.runs import new_id
from skeino.testing import at, ending, everything, the_run, the_thread
from skeino.validation import MAX_JSON_DEPTH


def thread(thread_id: str, **changes: Any) -> ThreadRow:
    row: ThreadRow = {
        "thread_id": thread_id,
        "owner": "ada",
        "status": "interrupted",
        "metadata": {"topic": "houses", "$set": {"a.b": [1, 2.5, None]}},
        "config": {"recursion_limit": 50},
        "ttl": {"strategy": "keep_latest", "ttl": 90.5},
        "created_at": at(1),
        "updated_at": at(2),
    }
    return cast("ThreadRow", {**row, **changes})


def run(thread_id: str | None, **changes: Any) -> RunRow:
    row: RunRow = {
        "run_id": new_id(),
        "thread_id": thread_id,
        "owner": "ada",
        "worker_id": "web1-4711-x",
        "status": "error",
        "metadata": {"queue": "mail", "1e23": 1e23},
        "kwargs": {"method": "POST"},
        "error": RunError(code="exception", type="ValueError", message="no"),
        "http_status": 500,
        "created_at": at(3),
        "started_at": at(4),
        "finished_at": at(5),
        "checkpoint_count": 3,
        "first_checkpoint_id": "1f0-a",
        "last_checkpoint_id": "1f0-c",
        "paused": True,
        "late_outcome": {"status": "success", "metadata": {"1e23": 1e23}, "error": None},
    }
    return cast("RunRow", {**row, **changes})


async def test_rows_come_back_as_they_were(store: MetadataStoreProtocol) -> None:
    threads = [thread("t1"), thread("t2", owner=None, ttl=None, status="error"), thread("t3", status="idle")]
    runs = [run("t1", status=status) for status in TERMINAL_STATUSES] + [
        run(
            None,
            error=None,
            http_status=None,
            first_checkpoint_id=None,
            last_checkpoint_id=None,
            paused=False,
            late_outcome=None,
        )
    ]

    assert await store.restore_threads(threads) == 3
    assert await store.restore_runs(runs) == len(runs)

    assert [await the_thread(store, row["thread_id"]) for row in threads] == threads
    assert [await the_run(store, row["run_id"]) for row in runs] == runs


async def test_an_active_run_makes_its_thread_busy_and_can_still_end(store: MetadataStoreProtocol) -> None:
    active = [run("t1", status=status, finished_at=None, error=None) for status in ("pending", "running")]
    await store.restore_threads([thread("t1", status="busy")])
    assert (await the_thread(store, "t1"))["status"] == "idle"

    await store.restore_runs(active)

    assert (await the_thread(store, "t1"))["status"] == "busy"
    assert [await the_run(store, row["run_id"]) for row in active] == active
    for row in active:
        assert await store.finish_run(ending(row["run_id"], worker_id="web1-4711-x", thread_status="error"))
    assert (await the_thread(store, "t1"))["status"] == "error"


async def test_what_is_there_stays_as_it_is(store: MetadataStoreProtocol) -> None:
    first = run("t1")
    await store.restore_threads([thread("t1")])
    await store.restore_runs([first])

    assert await store.restore_threads([thread("t1", metadata={"other": 1}), thread("t2")]) == 1
    assert await store.restore_runs([{**first, "status": "success"}, run("t1")]) == 1

    assert await the_thread(store, "t1") == thread("t1")
    assert await the_run(store, first["run_id"]) == first


async def test_an_id_given_twice_is_written_once_as_it_comes_first(store: MetadataStoreProtocol) -> None:
    one = run("t1")
    assert await store.restore_threads([thread("t1"), thread("t1", status="error")]) == 1
    assert await store.restore_runs([one, {**one, "status": "success"}]) == 1
    assert (await the_thread(store, "t1"))["status"] == "interrupted"
    assert (await the_run(store, one["run_id"]))["status"] == "error"


@pytest.mark.parametrize("other", [{"thread_id": "missing"}, {"owner": "bob"}, {"owner": None}], ids=str)
async def test_a_run_without_its_thread_is_refused_and_nothing_is_written(
    store: MetadataStoreProtocol, other: dict[str, Any]
) -> None:
    await store.restore_threads([thread("t1")])
    before = await everything(store)
    with pytest.raises(ThreadNotFoundError):
        await store.restore_runs([run("t1"), cast("RunRow", {**run("t1"), **other})])
    assert await everything(store) == before


WRONG_THREADS: Sequence[dict[str, Any]] = [
    {"thread_id": ""},
    {"owner": "\x00"},
    {"status": "sleeping"},
    {"metadata": {"a": float("nan")}},
    {"config": None},
    {"ttl": {"strategy": "delete", "ttl": 0}},
    {"created_at": at(1).replace(tzinfo=None)},
    {"more": 1},
]
WRONG_RUNS: Sequence[dict[str, Any]] = [
    {"run_id": "1"},
    {"worker_id": ""},
    {"status": "busy"},
    {"status": "running"},
    {"finished_at": None},
    {"error": {"code": "x"}},
    {"http_status": 7},
    {"checkpoint_count": -1},
    {"last_checkpoint_id": ""},
    {"paused": 1},
    {"late_outcome": "success"},
    {"started_at": "yesterday"},
]


@pytest.mark.parametrize("wrong", WRONG_THREADS, ids=str)
async def test_a_thread_that_cannot_be_stored_is_refused_with_all_others(
    store: MetadataStoreProtocol, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError):
        await store.restore_threads([thread("t1"), cast("ThreadRow", {**thread("t2"), **wrong})])
    assert await everything(store) == ([], [])


@pytest.mark.parametrize("wrong", WRONG_RUNS, ids=str)
async def test_a_run_that_cannot_be_stored_is_refused_with_all_others(
    store: MetadataStoreProtocol, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError):
        await store.restore_runs([run(None), run(None, **wrong)])
    assert await everything(store) == ([], [])


async def test_what_a_store_has_merged_is_restored_however_large_and_deep_it_has_become(
    store: MetadataStoreProtocol,
) -> None:
    deep: Any = None
    for _ in range(MAX_JSON_DEPTH):
        deep = {"a": deep}
    large = {f"part {number}": "x" * 100_000 for number in range(3)}  # each was no more than is allowed at once
    await store.restore_threads([thread("t1", metadata=large)])
    kept = run("t1", metadata=large, late_outcome={"metadata": deep})
    await store.restore_runs([kept])
    assert (await the_thread(store, "t1"))["metadata"] == large
    assert await the_run(store, kept["run_id"]) == kept


async def test_a_thousand_rows_at_once_and_no_more(store: MetadataStoreProtocol) -> None:
    threads = [thread(f"t{number}") for number in range(1001)]
    with pytest.raises(InvalidInputError, match="at most 1000"):
        await store.restore_threads(threads)
    assert await store.restore_threads(threads[:1000]) == 1000
    assert await store.restore_runs([run(row["thread_id"]) for row in threads[:1000]]) == 1000
    assert (await store.restore_threads([]), await store.restore_runs([])) == (0, 0)


async def test_rows_given_and_rows_kept_are_not_the_same_objects() -> None:
    store = InMemoryMetadataStore()
    row, of_it = thread("t1"), run("t1")
    await store.restore_threads([row])
    await store.restore_runs([of_it])
    row["metadata"]["topic"] = of_it["metadata"]["queue"] = "changed"
    assert (await the_thread(store, "t1"))["metadata"]["topic"] == "houses"
    assert (await the_run(store, of_it["run_id"]))["metadata"]["queue"] == "mail"


def test_every_status_is_tried() -> None:
    assert {*TERMINAL_STATUSES, "pending", "running"} == set(RUN_STATUSES)
