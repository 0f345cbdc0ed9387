"""Threads: making, changing, and reading their rows, which are copies."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from skeino.errors import ThreadExistsError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol, ThreadTTL
from skeino.runs import new_id
from skeino.testing.making import T0, ending, finished, started, the_run, the_thread

TTL: ThreadTTL = {"strategy": "delete", "ttl": 1.5}
SINGLE: list[Any] = [True, False, None, 0, -1, 1.5, "", "text", [], {}, [[]], [None, True, {"a": [1.25]}]]
JSON: list[dict[str, Any]] = [
    *({"v": one} for one in SINGLE),
    {"v": 2**63 - 1, "w": -(2**63), "x": 2**53 + 1},
    {"v": 1e23, "w": 5e-324, "x": 1.7976931348623157e308, "y": 0.1 + 0.2, "z": 1e16},
    {"": "empty key", "a.b": 1, "$set": 2, "it's": 3, '"q"': 4, "雪": 5, "a\nb": 6, "%s": 7, "\\": 8, ":x": 9},
    {"v": "雪 \U0001f40d e\u0301 \\ ' \" \n\t\x01 %(x)s {} $1 :name"},
]
IDS = ["x", "a b", "a/b?c=d#e", "雪", "it's", '"', "%s", "x" * 255, "-1", "NULL", "a\\b"]


class ThreadsContract:
    """A thread is made, changed and read; rows are copies."""

    async def test_a_new_thread_has_all_that_was_said(self, store: MetadataStoreProtocol) -> None:
        before = datetime.now(UTC)
        made = await store.create_thread("t", owner="ann", metadata={"a": 1}, config={"b": [2]}, ttl=TTL)
        assert made == {
            "thread_id": "t",
            "owner": "ann",
            "status": "idle",
            "metadata": {"a": 1},
            "config": {"b": [2]},
            "ttl": TTL,
            "created_at": made["created_at"],
            "updated_at": made["created_at"],
        }
        assert before <= made["created_at"] <= datetime.now(UTC)
        assert await store.get_thread("t") == made

    async def test_a_thread_is_made_once(self, store: MetadataStoreProtocol) -> None:
        made = await store.create_thread("t", owner="ann", metadata={"a": 1})
        for owner in ("ann", "bob", None):
            with pytest.raises(ThreadExistsError):
                await store.create_thread("t", owner=owner, metadata={"a": 2})
        again = await store.create_thread("t", owner="ann", metadata={"a": 2}, ttl=TTL, if_exists="do_nothing")
        assert again == made
        assert await store.get_thread("t") == made

    async def test_the_existing_thread_is_returned_as_a_reader_sees_it(self, store: MetadataStoreProtocol) -> None:
        await started(store, "t")
        assert (await store.create_thread("t", if_exists="do_nothing"))["status"] == "busy"

    async def test_an_existing_thread_of_another_owner_is_not_handed_out(self, store: MetadataStoreProtocol) -> None:
        await store.create_thread("t", owner="ann")
        for owner in ("bob", None):
            with pytest.raises(ThreadNotFoundError):
                await store.create_thread("t", owner=owner, if_exists="do_nothing")

    async def test_a_thread_of_another_owner_is_treated_as_none(self, store: MetadataStoreProtocol) -> None:
        made = await store.create_thread("t", owner="ann")
        assert await store.get_thread("t", owner="ann") == made
        for owner in ("bob", None):
            assert await store.get_thread("t", owner=owner) is None
            with pytest.raises(ThreadNotFoundError):
                await store.update_thread("t", metadata={"a": 1}, owner=owner)
            with pytest.raises(ThreadNotFoundError):
                await store.delete_thread("t", owner=owner, force=True)
        assert await store.get_thread("t") == made

    async def test_updating_merges_metadata_and_replaces_the_rest(self, store: MetadataStoreProtocol) -> None:
        made = await store.create_thread("t", metadata={"a": 1, "b": {"x": 1}}, config={"c": 1, "d": 1}, ttl=TTL)
        row = await store.update_thread("t", metadata={"b": {"y": 1}, "e": None})
        assert row["metadata"] == {"a": 1, "b": {"y": 1}, "e": None}
        assert (row["config"], row["ttl"], row["created_at"]) == (made["config"], TTL, made["created_at"])
        assert row["updated_at"] > made["updated_at"]
        row = await store.update_thread("t", config={"d": 2}, ttl={"strategy": "keep_latest", "ttl": 3})
        assert row["metadata"] == {"a": 1, "b": {"y": 1}, "e": None}
        assert (row["config"], row["ttl"]) == ({"d": 2}, {"strategy": "keep_latest", "ttl": 3.0})
        row = await store.update_thread("t", config={}, ttl=None)
        assert (row["config"], row["ttl"]) == ({}, None)
        assert await store.get_thread("t") == row

    async def test_updating_an_unknown_thread_makes_none(self, store: MetadataStoreProtocol) -> None:
        with pytest.raises(ThreadNotFoundError):
            await store.update_thread("t", metadata={"a": 1})
        assert await store.get_thread("t") is None

    async def test_an_update_shows_a_busy_thread_and_keeps_its_status(self, store: MetadataStoreProtocol) -> None:
        await finished(store, "t", thread_status="interrupted")
        run_id = await started(store, "t")
        assert (await store.update_thread("t", metadata={"a": 1}))["status"] == "busy"
        assert await store.finish_run(ending(run_id, thread_status=None))
        assert (await the_thread(store, "t"))["status"] == "interrupted"

    async def test_what_went_in_may_be_changed_afterwards(self, store: MetadataStoreProtocol) -> None:
        value: dict[str, Any] = {"deep": {"list": [1]}}
        error: Any = {"code": "c", "type": None, "message": "m"}
        ttl: ThreadTTL = {"strategy": "delete", "ttl": 1.0}
        run_id = new_id()
        await store.create_thread("t", metadata=value, config=value, ttl=ttl)
        await started(store, "t", run_id=run_id, metadata=value, kwargs=value)
        await store.update_thread("t", metadata={"more": value})
        await store.update_run(run_id, metadata={"more": value})
        assert await store.finish_run(ending(run_id, error=error, metadata={"end": value}))
        value["deep"]["list"].append(2)
        error["code"], ttl["ttl"] = "changed", 2.0
        thread, run = await the_thread(store, "t"), await the_run(store, run_id)
        fresh = {"deep": {"list": [1]}}
        assert (thread["metadata"], thread["config"]) == ({**fresh, "more": fresh}, fresh)
        assert (run["metadata"], run["kwargs"]) == ({**fresh, "more": fresh, "end": fresh}, fresh)
        assert (run["error"], thread["ttl"]) == ({"code": "c", "type": None, "message": "m"}, {**ttl, "ttl": 1.0})

    async def test_what_came_out_may_be_changed(self, store: MetadataStoreProtocol) -> None:
        made = await store.create_thread("t", metadata={"deep": {"list": [1]}}, config={"deep": [1]}, ttl={**TTL})
        run_id = await finished(store, "t", error={"code": "c", "type": None, "message": "m"}, metadata={"deep": [1]})
        updated = await store.update_thread("t", metadata={"other": [1]})
        updated_run = await store.update_run(run_id, metadata={"other": [1]})
        thread, run = deepcopy(await the_thread(store, "t")), deepcopy(await the_run(store, run_id))
        for row in (
            made,
            updated,
            updated_run,
            *await store.search_threads(),
            *await store.search_runs(),
            await store.create_thread("t", if_exists="do_nothing"),
            await the_thread(store, "t"),
            await the_run(store, run_id),
        ):
            _spoil(cast("dict[str, Any]", row))
        assert await store.get_thread("t") == thread
        assert await store.get_run(run_id) == run
        assert await store.search_threads() == [thread]
        assert await store.search_runs() == [run]

    @pytest.mark.parametrize("offset", [timedelta(hours=-9, minutes=-30), timedelta(0), timedelta(hours=14)])
    async def test_times_are_aware_utc_to_the_microsecond(
        self, store: MetadataStoreProtocol, offset: timedelta
    ) -> None:
        created, ended = T0, T0 + timedelta(seconds=1, microseconds=1)
        zone = timezone(offset)
        run_id = await started(store, "t", created_at=created.astimezone(zone))
        assert await store.finish_run(ending(run_id, finished_at=ended.astimezone(zone)))
        run, thread = await the_run(store, run_id), await the_thread(store, "t")
        for moment, expected in (
            (run["created_at"], created),
            (run["started_at"], created),
            (run["finished_at"], ended),
            (thread["created_at"], created),
            (thread["updated_at"], ended),
        ):
            assert moment is not None
            assert (moment, moment.microsecond) == (expected, expected.microsecond)
            assert moment.utcoffset() == timedelta(0)
            assert moment.tzinfo is UTC

    async def test_the_first_and_the_last_moment_allowed_come_back(self, store: MetadataStoreProtocol) -> None:
        first, last = datetime(2, 1, 1, tzinfo=UTC), datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
        early, late = await started(store, "early", created_at=first), await started(store, "late", created_at=last)
        assert (await the_run(store, early))["created_at"] == first
        assert (await the_run(store, late))["created_at"] == last
        assert (await the_thread(store, "late"))["created_at"] == last
        assert [row["run_id"] for row in await store.search_runs()] == [late, early]

    @pytest.mark.parametrize("value", JSON, ids=lambda value: ascii(value)[:40])
    async def test_json_comes_back_as_it_went_in(self, store: MetadataStoreProtocol, value: dict[str, Any]) -> None:
        made = await store.create_thread("t", metadata=value, config=value)
        run_id = await started(store, "t", metadata=value, kwargs=value)
        assert made["metadata"] == made["config"] == value
        thread, run = await the_thread(store, "t"), await the_run(store, run_id)
        for stored in (thread["metadata"], thread["config"], run["metadata"], run["kwargs"]):
            assert stored == value
            assert _kinds(stored) == _kinds(value), "a boolean became a number, or the reverse"
        await store.update_thread("t", metadata=thread["metadata"], config=thread["config"])
        assert (await the_thread(store, "t"))["metadata"] == value

    async def test_tuples_and_read_only_mappings_are_json_too(self, store: MetadataStoreProtocol) -> None:
        row = await store.create_thread("t", metadata={"v": (1, ("a",))})
        assert row["metadata"] == {"v": [1, ["a"]]}
        assert (await the_thread(store, "t"))["metadata"] == {"v": [1, ["a"]]}

    @pytest.mark.parametrize("thread_id", IDS, ids=lambda value: value[:10])
    async def test_any_printable_text_is_a_thread_id(self, store: MetadataStoreProtocol, thread_id: str) -> None:
        await started(store, thread_id, owner=thread_id, worker_id=thread_id)
        assert [row["thread_id"] for row in await store.search_threads(ids=[thread_id], owner=thread_id)] == [thread_id]
        assert [row["worker_id"] for row in await store.search_runs(thread_id=thread_id)] == [thread_id]
        await store.delete_thread(thread_id, owner=thread_id, force=True)
        assert await store.search_runs() == []


def _spoil(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        value.append("spoilt")


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_kinds(item) for item in value]
    return "number" if type(value) in (int, float) else type(value)  # JSON has one kind of number
