"""A run's life: its start, its thread, its one end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from skeino.errors import RunNotFoundError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from tests.contract.making import T0, WORKER, at, ending, everything, finished, started, the_run, the_thread

ERROR = {"code": "exception", "type": "ValueError", "message": 'no "such" thing — 雪'}


async def test_a_started_run_has_all_that_was_said(store: MetadataStoreProtocol) -> None:
    run_id = new_id()
    await store.start_run(
        run_id,
        worker_id="w",
        thread_id="t",
        owner="ann",
        metadata={"a": [1, {"b": None}]},
        kwargs={"method": "POST", "path": "/chat"},
        created_at=T0,
    )
    assert await store.get_run(run_id) == {
        "run_id": run_id,
        "thread_id": "t",
        "owner": "ann",
        "worker_id": "w",
        "status": "running",
        "metadata": {"a": [1, {"b": None}]},
        "kwargs": {"method": "POST", "path": "/chat"},
        "error": None,
        "http_status": None,
        "created_at": T0,
        "started_at": T0,
        "finished_at": None,
        "checkpoint_count": 0,
        "first_checkpoint_id": None,
        "last_checkpoint_id": None,
        "paused": False,
    }
    thread = await the_thread(store, "t")
    assert (thread["owner"], thread["status"], thread["metadata"], thread["config"]) == ("ann", "busy", {}, {})
    assert thread["created_at"] == thread["updated_at"] == T0


async def test_a_run_starts_now_unless_told_otherwise(store: MetadataStoreProtocol) -> None:
    before = datetime.now(UTC)
    row = await the_run(store, await started(store))
    assert before <= row["created_at"] == row["started_at"] <= datetime.now(UTC)


async def test_starting_twice_changes_nothing(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t", metadata={"a": 1}, created_at=T0)
    before = await everything(store)
    await started(store, "t", run_id=run_id, worker_id="other", metadata={"a": 2}, kwargs={"b": 1})
    assert await everything(store) == before


async def test_starting_twice_changes_nothing_after_the_end(store: MetadataStoreProtocol) -> None:
    run_id = await finished(store, "t")
    before = await everything(store)
    await started(store, "t", run_id=run_id)
    assert await everything(store) == before


async def test_starting_twice_makes_no_second_thread(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t")
    await started(store, "another", run_id=run_id)
    assert await store.get_thread("another") is None
    assert (await the_run(store, run_id))["thread_id"] == "t"


async def test_starting_twice_gives_a_run_no_thread_later(store: MetadataStoreProtocol) -> None:
    run_id = await started(store)
    await started(store, "t", run_id=run_id)
    assert (await the_run(store, run_id))["thread_id"] is None
    assert await store.get_thread("t") is None


async def test_starting_on_a_thread_of_another_owner_writes_nothing(store: MetadataStoreProtocol) -> None:
    await store.create_thread("anns", owner="ann")
    await store.create_thread("nobodys")
    before = await everything(store)
    for thread_id, owner in (("anns", "bob"), ("anns", None), ("nobodys", "bob")):
        for create_thread in (True, False):
            with pytest.raises(ThreadNotFoundError):
                await started(store, thread_id, owner=owner, create_thread=create_thread)
    assert await everything(store) == before


async def test_repeating_a_start_as_another_owner_is_refused(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t", owner="ann")
    before = await everything(store)
    with pytest.raises(ThreadNotFoundError):
        await started(store, "t", run_id=run_id, owner="bob")
    assert await everything(store) == before


async def test_a_start_leaves_an_existing_thread_as_it_is(store: MetadataStoreProtocol) -> None:
    before = await store.create_thread("t", owner="ann", metadata={"a": 1}, config={"b": 2})
    await started(store, "t", owner="ann")
    assert await store.get_thread("t") == {**before, "status": "busy"}


async def test_a_reading_run_makes_no_thread(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t", create_thread=False)
    assert await store.get_thread("t") is None
    assert (await the_run(store, run_id))["thread_id"] is None
    assert await store.finish_run(ending(run_id, thread_id="t"))
    assert await store.get_thread("t") is None
    assert (await the_run(store, run_id))["thread_id"] is None


async def test_a_reading_run_is_tied_to_its_thread_when_it_ends(store: MetadataStoreProtocol) -> None:
    before = await store.create_thread("t")
    run_id = await started(store, "t", create_thread=False)
    assert await store.get_thread("t") == before, "it makes the thread busy"
    assert await store.search_runs(thread_id="t") == []
    assert await store.finish_run(ending(run_id, thread_id="t", thread_status=None))
    assert (await the_run(store, run_id))["thread_id"] == "t"
    assert await store.get_thread("t") == before


async def test_an_end_ties_no_run_to_a_thread_of_another_owner(store: MetadataStoreProtocol) -> None:
    before = await store.create_thread("t", owner="ann")
    run_id = await started(store, owner="bob")
    assert await store.finish_run(ending(run_id, thread_id="t", thread_status="error"))
    assert (await the_run(store, run_id))["thread_id"] is None
    assert await store.get_thread("t") == before


async def test_an_end_does_not_move_a_run_to_another_thread(store: MetadataStoreProtocol) -> None:
    other = await store.create_thread("other")
    run_id = await started(store, "t")
    assert await store.finish_run(ending(run_id, thread_id="other", thread_status="error"))
    assert (await the_run(store, run_id))["thread_id"] == "t"
    assert (await the_thread(store, "t"))["status"] == "error"
    assert await store.get_thread("other") == other


async def test_attaching_makes_the_thread_and_ties_the_run(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, owner="ann")
    await store.attach_thread(run_id, "t", owner="ann")
    await store.attach_thread(run_id, "t", owner="ann")
    thread = await the_thread(store, "t")
    assert (thread["owner"], thread["status"]) == ("ann", "busy")
    assert (await the_run(store, run_id))["thread_id"] == "t"
    assert await store.finish_run(ending(run_id))
    assert (await the_thread(store, "t"))["status"] == "idle"


async def test_attaching_a_second_thread_makes_it_and_keeps_the_first(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t")
    await store.attach_thread(run_id, "second", owner=None)
    assert (await the_run(store, run_id))["thread_id"] == "t"
    assert (await the_thread(store, "second"))["status"] == "idle"


async def test_attaching_a_thread_of_another_owner_writes_nothing(store: MetadataStoreProtocol) -> None:
    await store.create_thread("t", owner="ann")
    run_id = await started(store, owner="bob")
    before = await everything(store)
    for owner in ("bob", None):
        with pytest.raises(ThreadNotFoundError):
            await store.attach_thread(run_id, "t", owner=owner)
    assert await everything(store) == before


async def test_attaching_after_the_end_leaves_the_run(store: MetadataStoreProtocol) -> None:
    run_id = await finished(store)
    before = await the_run(store, run_id)
    await store.attach_thread(run_id, "t", owner=None)
    assert await store.get_run(run_id) == before
    assert (await the_thread(store, "t"))["status"] == "idle"


async def test_an_end_writes_all_that_was_said(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t", metadata={"kept": 1, "changed": 1}, kwargs={"k": 1}, created_at=T0)
    end = ending(
        run_id,
        status="error",
        thread_status="interrupted",
        error=ERROR,
        http_status=500,
        metadata={"changed": {"deep": [2]}, "new": None},
        checkpoint_count=3,
        first_checkpoint_id="c1",
        last_checkpoint_id="c3",
        paused=True,
    )
    assert await store.finish_run(end) is True
    assert await store.get_run(run_id) == {
        "run_id": run_id,
        "thread_id": "t",
        "owner": None,
        "worker_id": WORKER,
        "status": "error",
        "metadata": {"kept": 1, "changed": {"deep": [2]}, "new": None},
        "kwargs": {"k": 1},
        "error": ERROR,
        "http_status": 500,
        "created_at": T0,
        "started_at": T0,
        "finished_at": at(60),
        "checkpoint_count": 3,
        "first_checkpoint_id": "c1",
        "last_checkpoint_id": "c3",
        "paused": True,
    }
    thread = await the_thread(store, "t")
    assert (thread["status"], thread["created_at"], thread["updated_at"]) == ("interrupted", T0, at(60))


@pytest.mark.parametrize("status", ["success", "error", "timeout", "interrupted"])
async def test_a_terminal_status_never_changes(store: MetadataStoreProtocol, status: str) -> None:
    run_id = await finished(store, "t", status=status)
    before = await everything(store)
    assert await store.finish_run(ending(run_id, status=status)) is True, "the same end, repeated"
    for other in {"success", "error", "timeout", "interrupted"} - {status}:
        assert await store.finish_run(ending(run_id, status=other, thread_status="error", metadata={"a": 1})) is False
    later = ending(run_id, status=status, finished_at=at(61), thread_status="error")
    assert await store.finish_run(later) is False, "another end of the same status"
    assert await store.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"}) == 0
    assert await everything(store) == before


async def test_only_the_worker_that_owns_a_run_ends_it(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t")
    before = await everything(store)
    assert await store.finish_run(ending(run_id, worker_id="other")) is False
    assert await everything(store) == before
    assert await store.finish_run(ending(run_id)) is True
    assert await store.finish_run(ending(run_id, worker_id="other")) is False


async def test_the_end_of_an_unknown_run_is_too_late(store: MetadataStoreProtocol) -> None:
    assert await store.finish_run(ending(new_id(), thread_id="t")) is False
    assert await everything(store) == ([], [])


async def test_an_end_does_not_bring_a_deleted_thread_back(store: MetadataStoreProtocol) -> None:
    tied, reading = await started(store, "t"), await started(store, "t", create_thread=False)
    await store.delete_thread("t", force=True)
    assert await store.finish_run(ending(tied, thread_id="t")) is False
    assert await store.finish_run(ending(reading, thread_id="t")) is True
    assert await store.get_thread("t") is None
    assert await store.get_run(tied) is None
    assert (await the_run(store, reading))["thread_id"] is None


@pytest.mark.parametrize("left", ["idle", "interrupted", "error"])
async def test_a_run_that_says_nothing_leaves_its_thread_as_it_was(store: MetadataStoreProtocol, left: str) -> None:
    await finished(store, "t", thread_status=left)
    before = await the_thread(store, "t")
    assert before["status"] == left
    run_id = await started(store, "t")
    assert (await the_thread(store, "t"))["status"] == "busy"
    assert await store.finish_run(ending(run_id, thread_status=None, finished_at=at(120)))
    assert await store.get_thread("t") == before


async def test_a_thread_is_busy_until_its_last_run_ends(store: MetadataStoreProtocol) -> None:
    first, second = await started(store, "t"), await started(store, "t")
    assert await store.finish_run(ending(first, thread_status="error"))
    assert (await the_thread(store, "t"))["status"] == "busy"
    assert await store.finish_run(ending(second, thread_status="idle"))
    assert (await the_thread(store, "t"))["status"] == "idle"


async def test_a_late_end_does_not_set_a_thread_back_in_time(store: MetadataStoreProtocol) -> None:
    first, second = await started(store, "t", created_at=T0), await started(store, "t", created_at=T0)
    assert await store.finish_run(ending(first, finished_at=at(9)))
    assert await store.finish_run(ending(second, finished_at=at(5)))
    assert (await the_thread(store, "t"))["updated_at"] == at(9)


async def test_interrupting_ends_the_active_runs_of_one_worker(store: MetadataStoreProtocol) -> None:
    error: Any = {"code": "shutdown", "type": None, "message": "stopped"}
    before = datetime.now(UTC)
    mine = [await started(store, "a"), await started(store, "b"), await started(store)]
    ended, others = await finished(store, "c"), await started(store, "d", worker_id="other")
    untouched = [await the_run(store, ended), await the_run(store, others)]
    assert await store.interrupt_runs(WORKER, error) == 3
    for run_id in mine:
        row = await the_run(store, run_id)
        assert (row["status"], row["error"]) == ("interrupted", error)
        assert row["finished_at"] is not None
        assert before <= row["finished_at"] <= datetime.now(UTC) + timedelta(seconds=1)
    assert [await the_run(store, ended), await the_run(store, others)] == untouched
    statuses = {row["thread_id"]: row["status"] for row in await store.search_threads()}
    assert statuses == {"a": "interrupted", "b": "interrupted", "c": "idle", "d": "busy"}
    assert await store.interrupt_runs(WORKER, error) == 0
    assert await store.finish_run(ending(mine[0])) is False


async def test_updating_a_run_merges_its_metadata(store: MetadataStoreProtocol) -> None:
    run_id = await started(store, "t", owner="ann", metadata={"a": 1, "b": {"x": 1}})
    before = await the_run(store, run_id)
    row = await store.update_run(run_id, metadata={"b": {"y": 2}, "c": None}, owner="ann")
    assert row == {**before, "metadata": {"a": 1, "b": {"y": 2}, "c": None}}
    assert await store.get_run(run_id) == row
    for owner in ("bob", None):
        with pytest.raises(RunNotFoundError):
            await store.update_run(run_id, metadata={"d": 1}, owner=owner)
    with pytest.raises(RunNotFoundError):
        await store.update_run(new_id(), metadata={})
    assert await store.get_run(run_id) == row


async def test_a_run_of_another_owner_is_not_found(store: MetadataStoreProtocol) -> None:
    anns, nobodys = await started(store, owner="ann"), await started(store)
    for run_id, owner, found in (
        (anns, "ann", True),
        (anns, "bob", False),
        (anns, None, False),
        (nobodys, None, True),
        (nobodys, "ann", False),
    ):
        assert (await store.get_run(run_id, owner=owner) is not None) is found
    assert await store.get_run(new_id()) is None
