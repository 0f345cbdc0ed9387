"""Searching: each condition, and how the answers are sorted and cut."""

from typing import Any

import pytest

from skeino.persistence import ANY_OWNER, MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import at, ending, finished, started

SCALARS = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    1.5,
    "1",
    "1.0",
    "true",
    "null",
    "",
    "text",
    "雪",
    "it's",
    '"',
    "%",
    "_",
    "\\",
]
KEYS = [
    "k",
    "",
    "a.b",
    "$k",
    "$.k",
    "k[0]",
    '"k"',
    "it's",
    "雪",
    "%s",
    "%(id)s",
    ":id",
    "?",
    "k\n",
    "#",
    "a b",
    "-1",
    "0",
]


class SearchingContract:
    """Each condition, and how the answers are sorted and cut."""

    async def test_a_metadata_filter_wants_an_equal_scalar(self, store: MetadataStoreProtocol) -> None:
        for number, value in enumerate(SCALARS):
            await store.create_thread(f"t{number}", metadata={"k": value})
        await store.create_thread("list", metadata={"k": [1, "1", True, None]})
        await store.create_thread("object", metadata={"k": {"k": 1}})
        await store.create_thread("absent", metadata={"other": 1})
        for number, value in enumerate(SCALARS):
            assert await threads_like(store, metadata={"k": value}) == [f"t{number}"], value
        assert await threads_like(store, metadata={"k": 1.0}) == [f"t{SCALARS.index(2) - 1}"], "1.0 is 1, and not true"
        assert await threads_like(store, metadata={"k": 0.0}) == [f"t{SCALARS.index(2) - 2}"], "0.0 is 0, and not false"
        assert await threads_like(store, metadata={"k": "TEXT"}) == []
        assert await threads_like(store, metadata={"K": "text"}) == []

    async def test_a_metadata_filter_knows_large_and_fine_numbers_apart(self, store: MetadataStoreProtocol) -> None:
        numbers = [2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63), 0.1, 0.1 + 2**-55, 1e300, 1e-300]
        for number, value in enumerate(numbers):
            await store.create_thread(f"t{number}", metadata={"k": value})
        for number, value in enumerate(numbers):
            assert await threads_like(store, metadata={"k": value}) == [f"t{number}"], value

    @pytest.mark.parametrize("key", KEYS)
    async def test_a_metadata_filter_takes_any_key_literally(self, store: MetadataStoreProtocol, key: str) -> None:
        for number, one in enumerate(KEYS):
            await store.create_thread(f"t{number}", metadata={one: "v", "shared": True})
        await store.create_thread("nested", metadata={"a": {"b": "v"}, "x": {key: "v"}})
        assert await threads_like(store, metadata={key: "v"}) == [f"t{KEYS.index(key)}"]
        assert await threads_like(store, metadata={key: "v", "shared": True}) == [f"t{KEYS.index(key)}"]
        assert await threads_like(store, metadata={key: None}) == []

    async def test_a_metadata_filter_tells_long_texts_apart(self, store: MetadataStoreProtocol) -> None:
        texts = ["é" * 99, "é" * 100, "é" * 101, "é" * 5000, "é" * 5000 + "x"]
        for number, text in enumerate(texts):
            await store.create_thread(f"t{number}", metadata={"text": text})
        for number, text in enumerate(texts):
            assert [row["thread_id"] for row in await store.search_threads(metadata={"text": text})] == [f"t{number}"]
        assert await store.search_threads(metadata={"text": "é" * 5001}) == []

    async def test_a_metadata_filter_follows_every_change(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("t", metadata={"a": 1, "b": "old"})
        await store.update_thread("t", metadata={"b": "new", "c": None})
        run_id = await started(store, "t", metadata={"a": 1})
        await store.update_run(run_id, metadata={"a": 2})
        await store.finish_run(ending(run_id, metadata={"last": True}))

        async def threads(**metadata: Any) -> list[str]:
            return [row["thread_id"] for row in await store.search_threads(metadata=metadata)]

        async def runs(**metadata: Any) -> list[str]:
            return [row["run_id"] for row in await store.search_runs(metadata=metadata)]

        assert (await threads(b="old"), await threads(b="new"), await threads(a=1, c=None)) == ([], ["t"], ["t"])
        assert (await runs(a=1), await runs(a=2), await runs(a=2, last=True)) == ([], [run_id], [run_id])
        await store.delete_thread("t")
        assert (await threads(b="new"), await runs(a=2)) == ([], [])
        await store.create_thread("t")
        assert await threads(b="new") == []

    async def test_a_metadata_filter_wants_every_key(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("a", metadata={"x": 1, "y": 1})
        await store.create_thread("b", metadata={"x": 1, "y": 2})
        assert await threads_like(store, metadata={"x": 1}) == ["a", "b"]
        assert await threads_like(store, metadata={"x": 1, "y": 2}) == ["b"]
        assert await threads_like(store, metadata={"x": 1, "z": None}) == []
        assert await threads_like(store, metadata={}) == ["a", "b"], "no key, no condition"
        assert await threads_like(store, metadata=None) == ["a", "b"]

    async def test_runs_are_filtered_by_metadata_too(self, store: MetadataStoreProtocol) -> None:
        first, second = await started(store, metadata={"k": 1}), await started(store, metadata={"k": True})
        assert [row["run_id"] for row in await store.search_runs(metadata={"k": 1})] == [first]
        assert [row["run_id"] for row in await store.search_runs(metadata={"k": True})] == [second]

    async def test_threads_are_filtered_by_status(self, store: MetadataStoreProtocol) -> None:
        for status in ("idle", "interrupted", "error"):
            await finished(store, status, thread_status=status)
            await finished(store, f"busy-{status}", thread_status=status)
            await started(store, f"busy-{status}")
        busy = ["busy-idle", "busy-interrupted", "busy-error"]
        assert await threads_like(store, status="busy") == busy
        for settled in ("idle", "interrupted", "error"):
            assert await threads_like(store, status=settled) == [settled], "a busy thread has no other status"
        assert await threads_like(store, status=["error", "idle"]) == ["idle", "error"]
        assert sorted(await threads_like(store, status=("busy", "error"))) == sorted([*busy, "error"])
        assert len(await threads_like(store, status={"busy", "idle", "interrupted", "error"})) == 6
        assert len(await threads_like(store, status=None)) == 6
        assert await threads_like(store, status=[]) == []

    @pytest.mark.parametrize("number", [5, 30])
    async def test_a_page_is_full_however_many_busy_threads_come_first(
        self, store: MetadataStoreProtocol, number: int
    ) -> None:
        for one in ("idle-1", "idle-2", "idle-3"):
            await finished(store, one, thread_status="idle")
        for other in range(number):
            await finished(store, f"busy-{other:02}", thread_status="idle")
            await started(store, f"busy-{other:02}")
        idle = await store.search_threads(status="idle", limit=2)
        busy = await store.search_threads(status="busy", limit=10)
        assert [row["thread_id"] for row in idle] == ["idle-3", "idle-2"]
        assert {row["status"] for row in idle} == {"idle"}
        assert len(busy) == min(number, 10)
        assert [row["thread_id"] for row in await store.search_threads(status="idle", offset=2)] == ["idle-1"]

    async def test_runs_are_filtered_by_status_and_thread(self, store: MetadataStoreProtocol) -> None:
        statuses: list[Any] = ["success", "error", "timeout", "interrupted"]
        ids = {status: await finished(store, "t", status=status) for status in statuses}
        ids["running"] = await started(store, "t")
        other = await started(store, "other")
        for status, run_id in ids.items():
            assert [row["run_id"] for row in await store.search_runs(status=status, thread_id="t")] == [run_id]
        assert {row["run_id"] for row in await store.search_runs(status=["running", "error"])} == {
            ids["running"],
            ids["error"],
            other,
        }
        assert await store.search_runs(status="pending") == []
        assert await store.search_runs(status=()) == []
        assert await store.search_runs(thread_id="unknown") == []

    async def test_ids_name_the_only_candidates(self, store: MetadataStoreProtocol) -> None:
        for thread_id in ("a", "b", "c"):
            await store.create_thread(thread_id)
        runs = [await started(store) for _ in range(3)]
        assert await threads_like(store, ids=["c", "a", "a", "unknown"]) == ["a", "c"]
        assert await threads_like(store, ids={"b"}) == ["b"]
        assert await threads_like(store, ids=()) == []
        assert await threads_like(store, ids=None) == ["a", "b", "c"]
        found = await store.search_runs(ids=[runs[2], runs[0], new_id()], sort_by="run_id", sort_order="asc")
        assert [row["run_id"] for row in found] == [runs[0], runs[2]]
        assert await store.search_runs(ids=[]) == []
        assert len(await threads_like(store, ids=[f"x{number}" for number in range(999)] + ["a"])) == 1

    async def test_no_owner_is_a_condition_and_any_owner_is_none(self, store: MetadataStoreProtocol) -> None:
        runs = {}
        for owner in (None, "ann", "bob"):
            await store.create_thread(f"of {owner}", owner=owner)
            runs[owner] = await started(store, owner=owner)
        for wanted in (None, "ann", "bob"):
            assert await threads_like(store, owner=wanted) == [f"of {wanted}"]
            assert [row["run_id"] for row in await store.search_runs(owner=wanted)] == [runs[wanted]]
        assert len(await threads_like(store, owner=ANY_OWNER)) == len(await store.search_runs(owner=ANY_OWNER)) == 3
        assert len(await threads_like(store)) == len(await store.search_runs()) == 3
        assert await threads_like(store, owner="nobody") == []

    async def test_created_after_includes_and_created_before_excludes(self, store: MetadataStoreProtocol) -> None:
        for number in range(3):
            await started(store, f"t{number}", created_at=at(number * 1e-6))
        first, second, third = (at(number * 1e-6) for number in range(3))
        for search, expected in (
            ({"created_after": second}, ["t1", "t2"]),
            ({"created_before": second}, ["t0"]),
            ({"created_after": first, "created_before": third}, ["t0", "t1"]),
            ({"created_after": second, "created_before": second}, []),
            ({"created_after": third, "created_before": first}, []),
            ({"created_after": None, "created_before": None}, ["t0", "t1", "t2"]),
        ):
            assert await threads_like(store, **search) == expected
            runs = await store.search_runs(**search, sort_order="asc")
            assert [row["thread_id"] for row in runs] == expected

    @pytest.mark.parametrize("sort_by", ["created_at", "updated_at", "thread_id"])
    async def test_threads_sort_by_each_column_and_then_by_id(self, store: MetadataStoreProtocol, sort_by: Any) -> None:
        moments = {"b": 1, "a": 1, "c": 0, "B": 1, "ä": 1, "雪": 1, "\U0001f40d": 1, "Z": 2, "a b": 1, "a-": 1}
        for thread_id, moment in moments.items():
            await finished(store, thread_id, start={"created_at": at(moment)}, finished_at=at(60 - moment))
        place = {"created_at": 1, "updated_at": -1, "thread_id": 0}[sort_by]
        expected = sorted(moments, key=lambda thread_id: (place * moments[thread_id], thread_id))
        assert await threads_like(store, sort_by=sort_by) == expected
        assert await threads_like(store, sort_by=sort_by, sort_order="desc") == expected[::-1]

    async def test_the_last_changed_thread_and_the_newest_run_come_first(self, store: MetadataStoreProtocol) -> None:
        old = await started(store, "old", created_at=at(0))
        new = await started(store, "new", created_at=at(1))
        assert [row["thread_id"] for row in await store.search_threads()] == ["new", "old"]
        assert [row["run_id"] for row in await store.search_runs()] == [new, old]
        await store.finish_run(ending(old, finished_at=at(2)))
        assert [row["thread_id"] for row in await store.search_threads()] == ["old", "new"]
        assert [row["run_id"] for row in await store.search_runs()] == [new, old]

    async def test_unfinished_runs_count_as_the_latest(self, store: MetadataStoreProtocol) -> None:
        running = [await started(store, created_at=at(0)) for _ in range(2)]
        early, late = await finished(store, finished_at=at(1)), await finished(store, finished_at=at(2))
        expected = [early, late, *running]
        for order, wanted in (("asc", expected), ("desc", expected[::-1])):
            found = await store.search_runs(sort_by="finished_at", sort_order=order)  # type: ignore[arg-type]
            assert [row["run_id"] for row in found] == wanted

    async def test_a_search_returns_a_hundred_rows_unless_told_otherwise(self, store: MetadataStoreProtocol) -> None:
        for number in range(105):
            await store.create_thread(f"t{number:03}")
        everything = [f"t{number:03}" for number in range(105)]
        assert await threads_like(store) == everything[:100]
        assert await threads_like(store, limit=1000) == everything
        assert await threads_like(store, limit=1) == everything[:1]
        assert await threads_like(store, limit=3, offset=103) == everything[103:]
        assert await threads_like(store, offset=105) == []
        assert await threads_like(store, offset=2**31 - 1) == []

    async def test_a_misspelt_condition_is_no_missing_condition(self, store: MetadataStoreProtocol) -> None:
        await started(store, "t")
        with pytest.raises((TypeError, ValueError)):
            await store.search_threads(statuses="idle")  # type: ignore[call-arg]
        with pytest.raises((TypeError, ValueError)):
            await store.search_runs(threadid="other")  # type: ignore[call-arg]


async def threads_like(store: MetadataStoreProtocol, **search: Any) -> list[str]:
    """The ids found, in the order of their making."""
    found = await store.search_threads(**{"sort_by": "created_at", "sort_order": "asc", **search})
    return [row["thread_id"] for row in found]
