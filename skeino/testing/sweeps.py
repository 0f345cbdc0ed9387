"""Sweeps: threads whose time is up, finished runs that are old, and whose turn it is."""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from skeino.errors import DeltaChannelError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.persistence.rows import ThreadRow
from skeino.persistence.sweeping import SweepableStore, Sweeps
from skeino.runs import new_id
from skeino.testing.making import ending, everything, finished, started, the_run, the_thread

LONG_AGO = timedelta(days=400)
MINUTE = timedelta(minutes=1)
BRIEFLY = 0.05 / 60
"""Minutes."""


class Recorder(InMemorySaver):
    """A checkpointer that notes which threads it was to delete and to prune."""

    def __init__(self, *, refuses: Collection[str] = ()) -> None:
        super().__init__()
        self.deleted: list[str] = []
        self.pruned: list[str] = []
        self._refuses = refuses

    async def adelete_thread(self, thread_id: str) -> None:
        self.deleted.append(thread_id)

    async def aprune(self, thread_ids: Any, *, strategy: str = "keep_latest") -> None:
        assert strategy == "keep_latest"
        if {*thread_ids} & {*self._refuses}:
            raise DeltaChannelError("It has delta channels.")
        self.pruned += thread_ids


def sweeps_of(store: MetadataStoreProtocol) -> Sweeps:
    """What is due in the store."""
    assert isinstance(store, SweepableStore), "it has no sweeps, so it knows nothing of what is due"
    return store.sweeps()


async def aged(
    store: MetadataStoreProtocol, thread_id: str, strategy: Any = "delete", *, ttl: float = 60, age: float = 61
) -> ThreadRow:
    """A thread that has changed `age` minutes ago and is to live for `ttl`; None for ever."""
    moment = datetime.now(UTC) - timedelta(minutes=age)
    row = ThreadRow(
        thread_id=thread_id,
        owner=None,
        status="idle",
        metadata={},
        config={},
        ttl=None if strategy is None else {"strategy": strategy, "ttl": ttl},
        created_at=moment - MINUTE,
        updated_at=moment,
    )
    assert await store.restore_threads([row]) == 1
    return row


async def due(store: MetadataStoreProtocol, **more: Any) -> list[str]:
    """Which threads are due."""
    return sorted(await sweeps_of(store).due_threads(**{"strategies": ("delete", "keep_latest"), "limit": 100, **more}))


@pytest.mark.asyncio
class SweepContract:
    """What `Sweeps` promises, tested on the store of a fixture `store`, as `MetadataStoreContract` is.

    For stores that can be swept: `class TestMyStore(MetadataStoreContract, SweepContract)`.
    """

    async def test_threads_are_due_when_their_time_since_the_last_change_is_up(
        self, store: MetadataStoreProtocol
    ) -> None:
        await aged(store, "for ever", None, age=10**6)
        await aged(store, "young", age=59.9)
        await aged(store, "young, of another life", ttl=5.5, age=5.4)
        await aged(store, "long-lived", ttl=10**8)
        await aged(store, "old", age=60.1)
        await aged(store, "old, of another life", ttl=5.5, age=5.6)
        await aged(store, "to prune", "keep_latest")
        assert await due(store) == ["old", "old, of another life", "to prune"]
        assert await due(store, strategies=("keep_latest",)) == ["to prune"]
        assert await due(store, leave_out=["old", "to prune"]) == ["old, of another life"]
        assert len(await due(store, limit=2)) == 2
        assert await sweeps_of(store).count_due(None) == (2, 1, 0)

    async def test_a_thread_that_changes_lives_on(self, store: MetadataStoreProtocol) -> None:
        for thread_id in ("updated", "ended", "run", "kept"):
            await aged(store, thread_id)
        await store.update_thread("updated", metadata={"a": 1})
        await finished(store, "ended", finished_at=datetime.now(UTC))
        await finished(store, "run", thread_status=None)  # which wrote nothing
        assert await due(store) == ["kept", "run"]
        await store.update_thread("kept", ttl=None)
        assert await due(store) == ["run"]

    async def test_a_thread_that_is_deleted_goes_with_its_runs_and_its_state(
        self, store: MetadataStoreProtocol
    ) -> None:
        saver = Recorder()
        await aged(store, "t")
        for _ in range(2):
            await finished(store, "t", thread_status=None)
        kept = await finished(store, "other")
        before = [await the_run(store, kept), await the_thread(store, "other")]
        assert await sweeps_of(store).expire_thread("t", saver) == "deleted"
        assert saver.deleted == ["t"]
        assert await everything(store) == ([before[1]], [before[0]])
        assert await sweeps_of(store).expire_thread("t", saver) == "kept"
        assert await sweeps_of(store).expire_thread("nobody's", saver) == "kept"
        assert saver.deleted == ["t"]

    async def test_a_thread_whose_time_is_not_up_is_kept(self, store: MetadataStoreProtocol) -> None:
        saver = Recorder()
        await aged(store, "t")
        await aged(store, "p", "keep_latest")
        assert await due(store) == ["p", "t"]
        for thread_id in ("t", "p"):
            await store.update_thread(thread_id, metadata={"came": "back"})
        before = await everything(store)
        assert [await sweeps_of(store).expire_thread(one, saver) for one in ("t", "p")] == ["kept", "kept"]
        assert await everything(store) == before
        assert (saver.deleted, saver.pruned) == ([], [])

    async def test_a_thread_with_an_active_run_is_kept_until_that_has_ended(self, store: MetadataStoreProtocol) -> None:
        saver = Recorder()
        await aged(store, "t")
        await aged(store, "p", "keep_latest")
        runs = [await started(store, thread_id) for thread_id in ("t", "p")]
        before = await everything(store)
        assert [await sweeps_of(store).expire_thread(one, saver) for one in ("t", "p")] == ["kept", "kept"]
        assert await everything(store) == before
        assert (saver.deleted, saver.pruned) == ([], [])
        for run_id in runs:
            assert await store.finish_run(ending(run_id, thread_status=None))
        assert [await sweeps_of(store).expire_thread(one, saver) for one in ("t", "p")] == ["deleted", "pruned"]
        assert (saver.deleted, saver.pruned) == (["t"], ["p"])

    async def test_a_thread_that_is_pruned_keeps_its_rows_and_is_due_again_when_it_has_changed(
        self, store: MetadataStoreProtocol
    ) -> None:
        saver = Recorder()
        row = await aged(store, "t", "keep_latest")
        await finished(store, "t", thread_status=None)
        before = await everything(store)
        assert await sweeps_of(store).expire_thread("t", saver) == "pruned"
        assert await everything(store) == before
        assert await due(store) == []
        assert await sweeps_of(store).count_due(None) == (0, 0, 0)
        assert await sweeps_of(store).expire_thread("t", saver) == "kept"
        await finished(store, "t", finished_at=row["updated_at"] + MINUTE / 2)
        assert await due(store) == ["t"]
        assert await sweeps_of(store).expire_thread("t", saver) == "pruned"
        assert saver.pruned == ["t", "t"]

    async def test_whatever_changes_a_pruned_thread_makes_it_due_again(self, store: MetadataStoreProtocol) -> None:
        threads = ("updated", "ended", "interrupted", "together 1", "together 2", "together 3")
        error: Any = {"code": "x", "type": None, "message": "x"}
        for thread_id in threads:
            await aged(store, thread_id, "keep_latest", ttl=BRIEFLY)
            assert await sweeps_of(store).expire_thread(thread_id, Recorder()) == "pruned"
        now = datetime.now(UTC)
        await store.update_thread("updated", metadata={"a": 1})
        await finished(store, "ended", finished_at=now)
        await started(store, "interrupted", worker_id="w")
        await store.interrupt_runs("w", error)
        runs = [await started(store, thread_id) for thread_id in threads[3:]]
        assert all(await asyncio.gather(*(store.finish_run(ending(run_id, finished_at=now)) for run_id in runs)))
        await asyncio.sleep(0.1)
        assert await due(store) == sorted(threads)

    async def test_a_thread_that_cannot_be_pruned_is_not_tried_again_until_it_changes(
        self, store: MetadataStoreProtocol
    ) -> None:
        saver = Recorder(refuses=["t"])
        row = await aged(store, "t", "keep_latest")
        assert await sweeps_of(store).expire_thread("t", saver) == "unprunable"
        assert await due(store) == []
        assert await the_thread(store, "t") == row
        await finished(store, "t", finished_at=row["updated_at"] + MINUTE / 2)
        assert await due(store) == ["t"]

    async def test_an_end_that_comes_after_the_sweep_brings_nothing_back(self, store: MetadataStoreProtocol) -> None:
        await aged(store, "t")
        run_id = await finished(store, "t", thread_status=None)
        assert await sweeps_of(store).expire_thread("t", Recorder()) == "deleted"
        assert await store.finish_run(ending(run_id, thread_status=None)) is False
        assert await store.finish_run(ending(run_id, thread_id="t", status="error")) is False
        assert await everything(store) == ([], [])

    async def test_runs_that_start_while_their_thread_is_swept_have_a_thread(
        self, store: MetadataStoreProtocol
    ) -> None:
        for number in range(20):
            thread_id = f"t{number}"
            await aged(store, thread_id)
            old = await finished(store, thread_id, thread_status=None)
            expiry, run_id, _ = await asyncio.gather(
                sweeps_of(store).expire_thread(thread_id, Recorder()),
                started(store, thread_id),
                store.attach_thread(await started(store), thread_id, owner=None),
            )
            assert (await the_thread(store, thread_id))["status"] == "busy"
            assert (await the_run(store, run_id))["thread_id"] == thread_id
            assert ((await store.get_run(old)) is None) == (expiry == "deleted")

    async def test_a_thread_is_swept_once_however_many_sweep_and_delete(self, store: MetadataStoreProtocol) -> None:
        async def delete(thread_id: str) -> bool:
            try:
                await store.delete_thread(thread_id)
            except ThreadNotFoundError:
                return False
            return True

        for number in range(10):
            thread_id = f"t{number}"
            await aged(store, thread_id)
            await finished(store, thread_id, thread_status=None)
            expired = asyncio.gather(*(sweeps_of(store).expire_thread(thread_id, Recorder()) for _ in range(3)))
            deleted = await delete(thread_id)
            assert (await expired).count("deleted") + deleted == 1
        assert await everything(store) == ([], [])

    async def test_finished_runs_that_are_old_are_deleted_and_nothing_else(self, store: MetadataStoreProtocol) -> None:
        now = datetime.now(UTC)
        began = {"created_at": now - LONG_AGO}
        old = [
            await finished(store, "t", start=began, finished_at=now - timedelta(days=31), status=status)
            for status in ("success", "error", "timeout", "interrupted")
        ]
        old.append(await finished(store, None, start=began, finished_at=now - LONG_AGO))
        kept = [
            await finished(store, "t", start=began, finished_at=now - timedelta(days=29)),
            await started(store, "t", **began),
            await started(store, None, **began),
            await finished(store, "t", finished_at=now),
        ]
        before = [await the_run(store, run_id) for run_id in kept]
        thread = await the_thread(store, "t")
        assert (await sweeps_of(store).count_due(timedelta(days=30))).deleted_runs == 5
        assert (await sweeps_of(store).count_due(None)).deleted_runs == 0
        numbers = [await sweeps_of(store).delete_finished_runs(timedelta(days=30), limit=2) for _ in range(4)]
        assert numbers == [2, 2, 1, 0]
        assert [await store.get_run(run_id) for run_id in old] == [None] * 5
        assert [await the_run(store, run_id) for run_id in kept] == before
        assert await the_thread(store, "t") == thread

    async def test_one_worker_sweeps_at_a_time(self, store: MetadataStoreProtocol) -> None:
        sweeps, another = sweeps_of(store), sweeps_of(store)
        turns = await asyncio.gather(
            *(one.begin(f"w{number}", seconds=60, interval=0) for number, one in enumerate((sweeps, another) * 5))
        )
        assert min(turns) == 0.0
        assert all(50 < wait <= 60 for wait in sorted(turns)[1:])
        worker_id = f"w{turns.index(0.0)}"
        assert await another.renew("nobody", seconds=60) is False
        assert await sweeps.renew(worker_id, seconds=60) is True
        await another.end("nobody")
        assert await another.begin("w", seconds=60, interval=0) > 50
        await sweeps.end(worker_id)
        assert await another.begin("w", seconds=60, interval=0) == 0.0
        assert await sweeps.renew(worker_id, seconds=60) is False, "it is another's now"

    async def test_a_worker_that_dies_while_it_sweeps_is_followed_by_another(
        self, store: MetadataStoreProtocol
    ) -> None:
        sweeps = sweeps_of(store)
        assert await sweeps.begin("dies", seconds=0.2, interval=0) == 0.0
        assert 0 < await sweeps.begin("w", seconds=60, interval=0) <= 0.2
        await asyncio.sleep(0.25)
        assert await sweeps.begin("w", seconds=60, interval=0) == 0.0

    async def test_sweeps_begin_an_interval_apart_whoever_does_them(self, store: MetadataStoreProtocol) -> None:
        sweeps = sweeps_of(store)
        assert await sweeps.begin("w1", seconds=60, interval=100) == 0.0
        await sweeps.end("w1")
        for worker_id in ("w1", "w2"):
            assert 90 < await sweeps.begin(worker_id, seconds=60, interval=100) <= 100
        await asyncio.sleep(0.15)
        assert await sweeps.begin("w2", seconds=60, interval=0.1) == 0.0

    async def test_runs_are_deleted_by_several_at_once_and_each_once(self, store: MetadataStoreProtocol) -> None:
        long_ago = datetime.now(UTC) - LONG_AGO
        for _ in range(40):
            await finished(store, "t", start={"created_at": long_ago, "run_id": new_id()}, finished_at=long_ago)
        deleting = [sweeps_of(store).delete_finished_runs(timedelta(days=1), limit=15) for _ in range(4)]
        number = sum(await asyncio.gather(*deleting))
        while number < 40 and (more := await sweeps_of(store).delete_finished_runs(timedelta(days=1), limit=15)):
            number += more
        assert number == 40
        assert (await everything(store))[1] == []
