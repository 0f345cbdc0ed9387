"""A run's one end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import T0, WORKER, at, ending, everything, finished, started, the_run, the_thread

ERROR = {"code": "exception", "type": "ValueError", "message": 'no "such" thing — 雪'}


class EndsContract:
    """A run ends once, by the worker that owns it, and its thread with it."""

    async def test_an_end_writes_all_that_was_said(self, store: MetadataStoreProtocol) -> None:
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
            "late_outcome": None,
        }
        thread = await the_thread(store, "t")
        assert (thread["status"], thread["created_at"], thread["updated_at"]) == ("interrupted", T0, at(60))

    @pytest.mark.parametrize("status", ["success", "error", "timeout", "interrupted"])
    async def test_a_terminal_status_never_changes(self, store: MetadataStoreProtocol, status: str) -> None:
        run_id = await finished(store, "t", status=status)
        before = await everything(store)
        assert await store.finish_run(ending(run_id, status=status)) is True, "the same end, repeated"
        assert await everything(store) == before
        for other in {"success", "error", "timeout", "interrupted"} - {status}:
            assert (
                await store.finish_run(ending(run_id, status=other, thread_status="error", metadata={"a": 1})) is False
            )
        later = ending(run_id, status=status, finished_at=at(61), thread_status="error")
        assert await store.finish_run(later) is False, "another end of the same status"
        assert await store.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"}) == 0
        threads, (run,) = await everything(store)
        assert (threads, [{**run, "late_outcome": None}]) == before

    async def test_the_first_end_that_comes_too_late_is_kept_aside(self, store: MetadataStoreProtocol) -> None:
        run_id, other = await finished(store, "t", status="error"), await started(store, "t")
        before = [await the_run(store, run_id), await the_run(store, other)]
        late = ending(run_id, finished_at=at(61), error=ERROR, http_status=200, metadata={"m": [None]}, paused=True)
        assert await store.finish_run(late) is False
        assert await store.finish_run(late) is False, "it is late again"
        assert await store.finish_run(ending(run_id, status="timeout", finished_at=at(62))) is False
        assert [await the_run(store, run_id), await the_run(store, other)] == [
            {
                **before[0],
                "late_outcome": {
                    "status": "success",
                    "finished_at": "2026-03-01T12:01:01.123456+00:00",
                    "thread_id": None,
                    "thread_status": "idle",
                    "error": ERROR,
                    "http_status": 200,
                    "metadata": {"m": [None]},
                    "checkpoint_count": 0,
                    "first_checkpoint_id": None,
                    "last_checkpoint_id": None,
                    "paused": True,
                },
            },
            before[1],
        ]
        assert (await store.search_runs(ids=[run_id]))[0] == await the_run(store, run_id)

    async def test_an_end_that_is_too_late_for_a_run_that_was_interrupted_is_kept_aside(
        self, store: MetadataStoreProtocol
    ) -> None:
        run_id = await started(store, "t")
        await store.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"})
        assert await store.finish_run(ending(run_id)) is False
        late = (await the_run(store, run_id))["late_outcome"]
        assert late is not None
        assert late["status"] == "success"

    async def test_only_the_worker_that_owns_a_run_ends_it(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t")
        before = await everything(store)
        assert await store.finish_run(ending(run_id, worker_id="other")) is False
        assert await everything(store) == before
        assert await store.finish_run(ending(run_id)) is True
        before = await everything(store)
        assert await store.finish_run(ending(run_id, worker_id="other")) is False
        assert await everything(store) == before, "it is not the other's to say anything of"

    async def test_the_end_of_an_unknown_run_is_too_late(self, store: MetadataStoreProtocol) -> None:
        assert await store.finish_run(ending(new_id(), thread_id="t")) is False
        assert await everything(store) == ([], [])

    async def test_an_end_ties_no_run_to_a_thread_of_another_owner(self, store: MetadataStoreProtocol) -> None:
        before = await store.create_thread("t", owner="ann")
        run_id = await started(store, owner="bob")
        assert await store.finish_run(ending(run_id, thread_id="t", thread_status="error"))
        assert (await the_run(store, run_id))["thread_id"] is None
        assert await store.get_thread("t") == before

    async def test_an_end_does_not_move_a_run_to_another_thread(self, store: MetadataStoreProtocol) -> None:
        other = await store.create_thread("other")
        run_id = await started(store, "t")
        assert await store.finish_run(ending(run_id, thread_id="other", thread_status="error"))
        assert (await the_run(store, run_id))["thread_id"] == "t"
        assert (await the_thread(store, "t"))["status"] == "error"
        assert await store.get_thread("other") == other

    async def test_an_end_does_not_bring_a_deleted_thread_back(self, store: MetadataStoreProtocol) -> None:
        tied, reading = await started(store, "t"), await started(store, "t", create_thread=False)
        await store.delete_thread("t", force=True)
        assert await store.finish_run(ending(tied, thread_id="t")) is False
        assert await store.finish_run(ending(reading, thread_id="t")) is True
        assert await store.get_thread("t") is None
        assert await store.get_run(tied) is None
        assert (await the_run(store, reading))["thread_id"] is None

    @pytest.mark.parametrize("left", ["idle", "interrupted", "error"])
    async def test_a_run_that_says_nothing_leaves_its_thread_as_it_was(
        self, store: MetadataStoreProtocol, left: str
    ) -> None:
        await finished(store, "t", thread_status=left)
        before = await the_thread(store, "t")
        assert before["status"] == left
        run_id = await started(store, "t")
        assert (await the_thread(store, "t"))["status"] == "busy"
        assert await store.finish_run(ending(run_id, thread_status=None, finished_at=at(120)))
        assert await store.get_thread("t") == before

    async def test_a_thread_is_busy_until_its_last_run_ends(self, store: MetadataStoreProtocol) -> None:
        first, second = await started(store, "t"), await started(store, "t")
        assert await store.finish_run(ending(first, thread_status="error"))
        assert (await the_thread(store, "t"))["status"] == "busy"
        assert await store.finish_run(ending(second, thread_status="idle"))
        assert (await the_thread(store, "t"))["status"] == "idle"

    async def test_a_late_end_does_not_set_a_thread_back_in_time(self, store: MetadataStoreProtocol) -> None:
        first, second = await started(store, "t", created_at=T0), await started(store, "t", created_at=T0)
        assert await store.finish_run(ending(first, finished_at=at(9)))
        assert await store.finish_run(ending(second, finished_at=at(5)))
        assert (await the_thread(store, "t"))["updated_at"] == at(9)

    async def test_interrupting_ends_the_active_runs_of_one_worker(self, store: MetadataStoreProtocol) -> None:
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
