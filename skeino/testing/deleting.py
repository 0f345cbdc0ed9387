"""Deleting a thread: its row and its runs, all or nothing."""

import pytest

from skeino.errors import ThreadBusyError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import ending, everything, finished, started, the_run, the_thread


class DeletingContract:
    """A thread goes with its runs, all or nothing."""

    async def test_a_thread_goes_with_its_runs_and_nothing_else(self, store: MetadataStoreProtocol) -> None:
        gone = [await finished(store, "t") for _ in range(3)]
        kept = [await finished(store, "other"), await started(store, "other"), await started(store)]
        before = [await the_run(store, run_id) for run_id in kept]
        other = await the_thread(store, "other")
        await store.delete_thread("t")
        assert await store.get_thread("t") is None
        assert [await store.get_run(run_id) for run_id in gone] == [None] * 3
        assert await store.search_runs(thread_id="t") == []
        assert [await store.get_run(run_id) for run_id in kept] == before
        assert await store.get_thread("other") == other

    async def test_deleting_what_is_not_there_is_refused(self, store: MetadataStoreProtocol) -> None:
        for force in (False, True):
            with pytest.raises(ThreadNotFoundError):
                await store.delete_thread("t", force=force)
        await store.create_thread("t")
        await store.delete_thread("t")
        with pytest.raises(ThreadNotFoundError):
            await store.delete_thread("t")

    async def test_a_busy_thread_is_not_deleted(self, store: MetadataStoreProtocol) -> None:
        await finished(store, "t")
        await started(store, "t")
        before = await everything(store)
        with pytest.raises(ThreadBusyError):
            await store.delete_thread("t")
        assert await everything(store) == before

    async def test_a_busy_thread_is_deleted_by_force(self, store: MetadataStoreProtocol) -> None:
        await finished(store, "t")
        await started(store, "t")
        await store.delete_thread("t", force=True)
        assert await everything(store) == ([], [])

    async def test_the_run_that_asks_for_the_deletion_does_not_count(self, store: MetadataStoreProtocol) -> None:
        asking = await started(store, "t")
        other = await started(store, "t")
        before = await everything(store)
        with pytest.raises(ThreadBusyError):
            await store.delete_thread("t", ignore_run=asking)
        with pytest.raises(ThreadBusyError):
            await store.delete_thread("t", ignore_run=new_id())
        assert await everything(store) == before
        await store.delete_thread("t", ignore_run=asking, force=True)
        assert await store.get_run(other) is None
        asking = await started(store, "t")
        await store.delete_thread("t", ignore_run=asking)
        assert await store.get_thread("t") is None

    async def test_the_run_that_asks_for_the_deletion_keeps_its_row_without_the_thread(
        self,
        store: MetadataStoreProtocol,
    ) -> None:
        asking = await started(store, "t")
        await store.delete_thread("t", ignore_run=asking)
        row = await the_run(store, asking)
        assert (row["thread_id"], row["status"]) == (None, "running")
        await store.attach_thread(asking, "t", owner=None)
        assert (await the_run(store, asking))["thread_id"] == "t", "it may write to the thread anew"
        assert await store.finish_run(ending(asking))

    async def test_a_deleted_thread_may_be_made_anew(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("t", owner="ann", metadata={"a": 1})
        await finished(store, "t", start={"owner": "ann"})
        await store.delete_thread("t", owner="ann")
        run_id = await started(store, "t", owner="bob")
        thread = await the_thread(store, "t")
        assert (thread["owner"], thread["metadata"], thread["status"]) == ("bob", {}, "busy")
        assert [row["run_id"] for row in await store.search_runs(thread_id="t")] == [run_id]
