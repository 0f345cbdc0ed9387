"""Searching, with conditions drawn at random, against a model in plain Python."""

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from skeino.persistence import ANY_OWNER, MetadataStoreProtocol
from skeino.testing.making import at, ending, everything, started

Row = dict[str, Any]

VALUES = [None, True, False, 0, 1, 1.0, 2.5, "1", "a", "雪"]
KEYS = ["k", "a.b", "$x"]
OWNERS = [None, "ann", "bob"]
RUN_STATUSES = ["pending", "running", "success", "error", "timeout", "interrupted"]
THREAD_STATUSES = ["idle", "busy", "interrupted", "error"]
SECONDS = range(6)

quickly = hypothesis_settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.differing_executors,  # each class that inherits the test runs it
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)


def some(values: list[Any]) -> st.SearchStrategy[Any]:
    """One of them, or several, or none."""
    return st.one_of(st.none(), st.sampled_from(values), st.lists(st.sampled_from(values), max_size=3))


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries({}, optional=strategies)


moments = st.one_of(st.none(), st.sampled_from([at(second) for second in SECONDS]))
common = {
    "metadata": st.one_of(st.none(), st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)),
    "owner": st.sampled_from([*OWNERS, ANY_OWNER, "nobody"]),
    "created_after": moments,
    "created_before": moments,
    "sort_order": st.sampled_from(["asc", "desc"]),
    "limit": st.integers(1, 80),
    "offset": st.integers(0, 30),
}
thread_searches = optional(
    **common,
    status=some(THREAD_STATUSES),
    ids=st.one_of(st.none(), st.lists(st.sampled_from([f"{o}-{n}" for o in OWNERS for n in range(8)]), max_size=6)),
    sort_by=st.sampled_from(["created_at", "updated_at", "thread_id"]),
)
run_searches = optional(
    **common,
    status=some(RUN_STATUSES),
    thread_id=st.sampled_from([None, "ann-1", "ann-2", "None-3", "unknown"]),
    sort_by=st.sampled_from(["created_at", "finished_at", "run_id"]),
)


class SearchingAtRandomContract:
    """A search finds what the model finds."""

    @pytest_asyncio.fixture
    async def filled(self, store: MetadataStoreProtocol) -> MetadataStoreProtocol:
        """A store with rows that agree in many columns, so that filters overlap and sorting has ties."""
        dice = random.Random(20260301)

        def metadata() -> Row:
            return {key: dice.choice(VALUES) for key in KEYS if dice.random() < 0.6}

        for number in range(60):
            owner = dice.choice(OWNERS)
            thread_id = dice.choice([None, f"{owner}-{dice.randrange(8)}"])
            run_id = await started(
                store,
                thread_id,
                owner=owner,
                metadata=metadata(),
                created_at=at(dice.choice(SECONDS)),
                kwargs={"n": number},
            )
            if thread_id is not None and dice.random() < 0.3:
                await store.update_thread(thread_id, metadata=metadata())
            if dice.random() < 0.7:
                await store.finish_run(
                    ending(
                        run_id,
                        status=dice.choice(RUN_STATUSES[2:]),
                        finished_at=at(dice.choice(SECONDS)),
                        thread_status=dice.choice([None, "idle", "interrupted", "error"]),
                    )
                )
        return store

    @given(search=thread_searches)
    @quickly
    async def test_threads_are_found_as_in_the_model(self, filled: MetadataStoreProtocol, search: Row) -> None:
        threads, _ = await everything(filled)
        expected = model(cast("list[Row]", threads), "thread_id", {"sort_by": "updated_at", **search})
        assert await filled.search_threads(**search) == expected

    @given(search=run_searches)
    @quickly
    async def test_runs_are_found_as_in_the_model(self, filled: MetadataStoreProtocol, search: Row) -> None:
        _, runs = await everything(filled)
        expected = model(cast("list[Row]", runs), "run_id", {"sort_by": "created_at", **search})
        assert await filled.search_runs(**search) == expected

    @pytest.mark.parametrize("size", [1, 7, 25])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_pages_neither_overlap_nor_leave_gaps(
        self, filled: MetadataStoreProtocol, size: int, order: Any
    ) -> None:
        searches: list[Callable[..., Any]] = [filled.search_threads, filled.search_runs]
        sorts = [("created_at", "updated_at", "thread_id"), ("created_at", "finished_at", "run_id")]
        for search, columns in zip(searches, sorts, strict=True):
            for sort_by in columns:
                whole = await search(sort_by=sort_by, sort_order=order, limit=1000)
                assert len(whole) > 15
                pages: list[Row] = []
                while page := await search(sort_by=sort_by, sort_order=order, limit=size, offset=len(pages)):
                    pages += page
                assert pages == whole


def model(rows: list[Row], id_column: str, search: Row) -> list[Row]:
    """What a search must return, in the most obvious way."""
    found = [row for row in rows if _satisfies(row, id_column, search)]
    sort_by = search["sort_by"]

    def place(row: Row) -> tuple[bool, datetime | str, str]:
        value = row[sort_by]
        return value is None, "" if value is None else value, row[id_column]

    found.sort(key=place, reverse=search.get("sort_order", "desc") == "desc")
    offset = search.get("offset", 0)
    return found[offset : offset + search.get("limit", 100)]


def _satisfies(row: Row, id_column: str, search: Row) -> bool:
    status, ids, owner = search.get("status"), search.get("ids"), search.get("owner", ANY_OWNER)
    after, before = search.get("created_after"), search.get("created_before")
    if status is not None and row["status"] not in ([status] if isinstance(status, str) else status):
        return False
    if ids is not None and row[id_column] not in ids:
        return False
    if owner is not ANY_OWNER and row["owner"] != owner:
        return False
    if search.get("thread_id") is not None and row["thread_id"] != search["thread_id"]:
        return False
    if (after is not None and row["created_at"] < after) or (before is not None and row["created_at"] >= before):
        return False
    for key, wanted in (search.get("metadata") or {}).items():
        if key not in row["metadata"]:
            return False
        stored = row["metadata"][key]
        if (type(stored) is bool) != (type(wanted) is bool) or stored != wanted:
            return False
    return True
