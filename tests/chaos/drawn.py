"""What the state machine's operations are called with: few values of each kind, so that operations meet."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from skeino.persistence import ANY_OWNER
from skeino.testing.making import at
from skeino.testing.searching_at_random import some
from tests.chaos.model import Row

THREADS = ["a", "B", "ä", "雪", "\U0001f600", "\uffee"]  # by their numbers, not by a language's or UTF-16's order
RUNS = [str(UUID(int=(7 << 76) | (2 << 62) | number)) for number in range(5)]
WORKERS = ["worker-1", "worker-2"]
OWNERS = [None, "ann", "bob"]

# Few of them most of the time, so that operations meet.
threads = st.sampled_from(THREADS[:2] * 6 + THREADS)
runs = st.sampled_from(RUNS[:2] * 6 + RUNS)
workers = st.sampled_from(WORKERS)
owners = st.sampled_from([None, "ann", "ann", "bob"])
owner_filters = st.sampled_from([ANY_OWNER, ANY_OWNER, *OWNERS])
times = st.integers(0, 5).map(at)
metadata = st.one_of(
    st.sampled_from([{}, {"k": True}, {"k": 1}, {"k": "1"}, {"k": None}]),
    st.dictionaries(
        st.sampled_from(["k", "a.b", "$x"]), st.sampled_from([0, 2.5, "雪", ["x"], {"$set": 1}]), max_size=2
    ),
)
configs = st.sampled_from([None, None, {"a": 1}, {"b": {"$set": 2}}, {}])
ttls = st.sampled_from([None, {"strategy": "delete", "ttl": 5.0}, {"strategy": "keep_latest", "ttl": 0.5}])
ended = st.sampled_from(["success", "error", "timeout", "interrupted"])
settled = st.sampled_from([None, "idle", "interrupted", "error"])
errors: st.SearchStrategy[Any] = st.sampled_from([None, {"code": "c", "type": None, "message": "it's gone"}])

starts = st.fixed_dictionaries(
    {
        "run": runs,
        "worker": workers,
        "thread": st.none() | threads | threads,
        "owner": owners,
        "meta": metadata,
        "at": times,
        "make": st.sampled_from([True, True, False]),
    }
)


def searches(sorts: list[str], **conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    """Up to two conditions, so that something is found, in an order."""

    def drawn(names: list[str]) -> st.SearchStrategy[Row]:
        return st.fixed_dictionaries({"sort_by": st.sampled_from(sorts), **{one: conditions[one] for one in names}})

    names = st.sampled_from([*conditions, "owner", "metadata"])
    return st.lists(names, max_size=2, unique=True).flatmap(drawn)


conditions: dict[str, st.SearchStrategy[Any]] = {
    "metadata": st.sampled_from([{"k": True}, {"k": 1}, {"k": "1"}, {"k": None}, {"k": 1.0, "a.b": 2.5}]),
    "owner": owner_filters,
    "created_after": times,
    "created_before": times,
    "sort_order": st.sampled_from(["asc", "desc"]),
    "limit": st.integers(1, 3),
    "offset": st.integers(0, 2),
}
thread_searches = searches(
    ["created_at", "updated_at", "thread_id"],
    **conditions,
    status=some(["idle", "busy", "interrupted", "error"]),
    ids=st.lists(threads, max_size=4),
)
run_searches = searches(
    ["created_at", "finished_at", "finished_at", "run_id"],
    **conditions,
    status=some(["pending", "running", "success", "error", "timeout", "interrupted"]),
    thread_id=threads,
    ids=st.lists(runs, max_size=4),
)
