"""Claims: who writes to a thread."""

import asyncio

import pytest

from skeino.errors import InvalidInputError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.persistence.claims import ClaimingStore, Queue
from skeino.runs import new_id
from skeino.testing.making import ending, started, the_run, the_thread


def claiming(store: MetadataStoreProtocol) -> ClaimingStore:
    """The store, if it has claims."""
    assert isinstance(store, ClaimingStore), "it has no claim_thread and so on, so it does not know who writes"
    return store


async def taken(store: MetadataStoreProtocol, run_id: str, thread_id: str = "t", *, owner: str | None = None) -> int:
    """The fence of a thread that the run has taken; nobody else was there."""
    fence = await claiming(store).claim_thread(run_id, thread_id, owner=owner)
    assert fence is not None
    return fence


@pytest.mark.asyncio
class ClaimContract:
    """What `ClaimingStore` promises, tested on the store of a fixture `store`, as `MetadataStoreContract` is."""

    async def test_a_claim_makes_the_thread_and_ties_the_run_to_it(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, owner="ann")
        await taken(store, run_id, owner="ann")
        assert (await the_thread(store, "t"))["owner"] == "ann"
        assert (await the_run(store, run_id))["thread_id"] == "t"
        assert await claiming(store).get_queue("t") == Queue((run_id,), frozenset({run_id}))

    async def test_a_run_keeps_its_thread_when_it_claims_another(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, thread_id="own")
        await taken(store, run_id, "other")
        assert (await the_run(store, run_id))["thread_id"] == "own"

    async def test_a_second_run_does_not_get_it_and_gets_a_higher_fence_later(
        self, store: MetadataStoreProtocol
    ) -> None:
        first, second = await started(store), await started(store)
        fence = await taken(store, first)
        assert await claiming(store).claim_thread(second, "t", owner=None) is None
        assert (await the_run(store, second))["thread_id"] == "t"
        assert await claiming(store).get_queue("t") == Queue((first,), frozenset({first}))
        await claiming(store).release_thread(first, "t")
        assert await claiming(store).get_queue("t") == Queue((), frozenset())
        assert await taken(store, second) == fence + 1

    async def test_of_many_at_once_one_gets_it(self, store: MetadataStoreProtocol) -> None:
        runs = [await started(store) for _ in range(20)]
        threads = [f"t{number % 4}" for number in range(20)]
        fences = await asyncio.gather(
            *(
                claiming(store).claim_thread(run_id, thread_id, owner=None)
                for run_id, thread_id in zip(runs, threads, strict=True)
            )
        )
        for thread_id in set(threads):
            got = [
                run_id
                for run_id, thread, fence in zip(runs, threads, fences, strict=True)
                if thread == thread_id and fence is not None
            ]
            assert len(got) == 1
            assert await claiming(store).get_queue(thread_id) == Queue((got[0],), frozenset(got))

    async def test_a_queue_is_changed_only_as_it_was_seen(self, store: MetadataStoreProtocol) -> None:
        one, two, three = [await started(store) for _ in range(3)]
        fence = await taken(store, one)
        change = claiming(store).change_queue
        assert await change("t", [], [two], takes=True) is None
        assert await change("t", [two], [two, one], takes=True) is None
        assert await change("t", [one], [one, two], takes=False) == fence
        assert await change("t", [one], [one, three], takes=False) is None
        assert await change("t", [one, two], [one, two, three], takes=False) == fence
        assert await claiming(store).get_queue("t") == Queue((one, two, three), frozenset({one, two, three}))
        assert await change("t", [one, two, three], [three], takes=True) == fence + 1
        assert await change("t", [three], [], takes=False) == fence + 1
        assert await claiming(store).get_queue("t") == Queue((), frozenset())

    async def test_of_many_changes_at_once_one_is_made(self, store: MetadataStoreProtocol) -> None:
        first, *others = [await started(store) for _ in range(9)]
        await taken(store, first)
        changed = await asyncio.gather(
            *(claiming(store).change_queue("t", [first], [first, other], takes=False) for other in others)
        )
        assert len([fence for fence in changed if fence is not None]) == 1

    async def test_whoever_leaves_leaves_the_others_where_they_are(self, store: MetadataStoreProtocol) -> None:
        one, two, three = [await started(store) for _ in range(3)]
        await taken(store, one)
        await claiming(store).change_queue("t", [one], [one, two, three], takes=False)
        await claiming(store).release_thread(two, "t")
        await claiming(store).release_thread(two, "t")
        assert await claiming(store).get_queue("t") == Queue((one, three), frozenset({one, three}))
        await asyncio.gather(claiming(store).release_thread(one, "t"), claiming(store).release_thread(three, "t"))
        assert await claiming(store).get_queue("t") == Queue((), frozenset())
        await claiming(store).release_thread(one, "there is no such thread")

    async def test_a_run_that_has_ended_is_not_active(self, store: MetadataStoreProtocol) -> None:
        one, two = await started(store), await started(store)
        await taken(store, one)
        await claiming(store).change_queue("t", [one], [one, two], takes=False)
        assert await store.finish_run(ending(one))
        assert await claiming(store).get_queue("t") == Queue((one, two), frozenset({two}))

    async def test_another_owners_thread_is_not_found(self, store: MetadataStoreProtocol) -> None:
        anns, bobs = await started(store, owner="ann"), await started(store, owner="bob")
        await taken(store, anns, owner="ann")
        await claiming(store).release_thread(anns, "t")
        for owner in ("bob", None):
            with pytest.raises(ThreadNotFoundError):
                await claiming(store).claim_thread(bobs, "t", owner=owner)
        assert await claiming(store).get_queue("t") == Queue((), frozenset())
        assert (await the_run(store, bobs))["thread_id"] is None

    async def test_a_deleted_thread_has_no_queue_and_its_successor_another_fence(
        self, store: MetadataStoreProtocol
    ) -> None:
        run_id = await started(store)
        fence = await taken(store, run_id)
        await store.delete_thread("t", force=True, ignore_run=run_id)
        assert await claiming(store).get_queue("t") is None
        assert await claiming(store).change_queue("t", [run_id], [], takes=True) is None
        await asyncio.sleep(0.01)  # where the clock is coarse
        assert await taken(store, run_id) > fence

    async def test_bad_ids_are_refused(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store)
        claims = claiming(store)
        for operation in (
            lambda: claims.claim_thread("none", "t", owner=None),
            lambda: claims.claim_thread(run_id, "", owner=None),
            lambda: claims.get_queue("a\x00b"),
            lambda: claims.change_queue("t", ["none"], [], takes=False),
            lambda: claims.change_queue("t", [], [new_id().upper()], takes=False),
            lambda: claims.release_thread("none", "t"),
        ):
            with pytest.raises(InvalidInputError):
                await operation()
