"""A run's start, its thread, and what is read of it."""

from datetime import UTC, datetime

import pytest

from skeino.errors import RunNotFoundError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import T0, ending, everything, finished, started, the_run, the_thread

ERROR = {"code": "exception", "type": "ValueError", "message": 'no "such" thing — 雪'}


class RunsContract:
    """A run is started, tied to a thread, read and updated."""

    async def test_a_started_run_has_all_that_was_said(self, store: MetadataStoreProtocol) -> None:
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
            "late_outcome": None,
        }
        thread = await the_thread(store, "t")
        assert (thread["owner"], thread["status"], thread["metadata"], thread["config"]) == ("ann", "busy", {}, {})
        assert thread["created_at"] == thread["updated_at"] == T0

    async def test_a_run_starts_now_unless_told_otherwise(self, store: MetadataStoreProtocol) -> None:
        before = datetime.now(UTC)
        row = await the_run(store, await started(store))
        assert before <= row["created_at"] == row["started_at"] <= datetime.now(UTC)

    async def test_starting_twice_changes_nothing(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t", metadata={"a": 1}, created_at=T0)
        before = await everything(store)
        await started(store, "t", run_id=run_id, worker_id="other", metadata={"a": 2}, kwargs={"b": 1})
        assert await everything(store) == before

    async def test_starting_twice_changes_nothing_after_the_end(self, store: MetadataStoreProtocol) -> None:
        run_id = await finished(store, "t")
        before = await everything(store)
        await started(store, "t", run_id=run_id)
        assert await everything(store) == before

    async def test_starting_twice_makes_no_second_thread(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t")
        await started(store, "another", run_id=run_id)
        assert await store.get_thread("another") is None
        assert (await the_run(store, run_id))["thread_id"] == "t"

    async def test_starting_twice_gives_a_run_no_thread_later(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store)
        await started(store, "t", run_id=run_id)
        assert (await the_run(store, run_id))["thread_id"] is None
        assert await store.get_thread("t") is None

    async def test_starting_on_a_thread_of_another_owner_writes_nothing(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("anns", owner="ann")
        await store.create_thread("nobodys")
        before = await everything(store)
        for thread_id, owner in (("anns", "bob"), ("anns", None), ("nobodys", "bob")):
            for create_thread in (True, False):
                with pytest.raises(ThreadNotFoundError):
                    await started(store, thread_id, owner=owner, create_thread=create_thread)
        assert await everything(store) == before

    async def test_repeating_a_start_as_another_owner_is_refused(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t", owner="ann")
        before = await everything(store)
        with pytest.raises(ThreadNotFoundError):
            await started(store, "t", run_id=run_id, owner="bob")
        assert await everything(store) == before

    async def test_a_start_leaves_an_existing_thread_as_it_is(self, store: MetadataStoreProtocol) -> None:
        before = await store.create_thread("t", owner="ann", metadata={"a": 1}, config={"b": 2})
        await started(store, "t", owner="ann")
        assert await store.get_thread("t") == {**before, "status": "busy"}

    async def test_a_reading_run_makes_no_thread(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t", create_thread=False)
        assert await store.get_thread("t") is None
        assert (await the_run(store, run_id))["thread_id"] is None
        assert await store.finish_run(ending(run_id, thread_id="t"))
        assert await store.get_thread("t") is None
        assert (await the_run(store, run_id))["thread_id"] is None

    async def test_a_reading_run_is_tied_to_its_thread_when_it_ends(self, store: MetadataStoreProtocol) -> None:
        before = await store.create_thread("t")
        run_id = await started(store, "t", create_thread=False)
        assert await store.get_thread("t") == before, "it makes the thread busy"
        assert await store.search_runs(thread_id="t") == []
        assert await store.finish_run(ending(run_id, thread_id="t", thread_status=None))
        assert (await the_run(store, run_id))["thread_id"] == "t"
        assert await store.get_thread("t") == before

    async def test_attaching_makes_the_thread_and_ties_the_run(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, owner="ann")
        await store.attach_thread(run_id, "t", owner="ann")
        await store.attach_thread(run_id, "t", owner="ann")
        thread = await the_thread(store, "t")
        assert (thread["owner"], thread["status"]) == ("ann", "busy")
        assert (await the_run(store, run_id))["thread_id"] == "t"
        assert await store.finish_run(ending(run_id))
        assert (await the_thread(store, "t"))["status"] == "idle"

    async def test_attaching_a_second_thread_makes_it_and_keeps_the_first(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t")
        await store.attach_thread(run_id, "second", owner=None)
        assert (await the_run(store, run_id))["thread_id"] == "t"
        assert (await the_thread(store, "second"))["status"] == "idle"

    async def test_attaching_a_thread_of_another_owner_writes_nothing(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("t", owner="ann")
        run_id = await started(store, owner="bob")
        before = await everything(store)
        for owner in ("bob", None):
            with pytest.raises(ThreadNotFoundError):
                await store.attach_thread(run_id, "t", owner=owner)
        assert await everything(store) == before

    async def test_attaching_after_the_end_leaves_the_run(self, store: MetadataStoreProtocol) -> None:
        run_id = await finished(store)
        before = await the_run(store, run_id)
        await store.attach_thread(run_id, "t", owner=None)
        assert await store.get_run(run_id) == before
        assert (await the_thread(store, "t"))["status"] == "idle"

    async def test_updating_a_run_merges_its_metadata(self, store: MetadataStoreProtocol) -> None:
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

    async def test_a_run_of_another_owner_is_not_found(self, store: MetadataStoreProtocol) -> None:
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
