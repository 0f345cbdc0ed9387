"""Bugs, one at a time, in the store and the saver of scheme memory: the state machine finds each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skeino.persistence import InMemoryMetadataStore, stamping
from skeino.persistence.memory import StampedInMemorySaver, store
from skeino.persistence.memory.saver import CompleteInMemorySaver
from skeino.runs import Run
from tests.chaos.bench import bench_of
from tests.chaos.state_machine import compare

EXAMPLES = 300

_finish: Any = InMemoryMetadataStore._finish
_end, _settle = InMemoryMetadataStore._end, InMemoryMetadataStore._settle
_delete, _update = InMemoryMetadataStore.delete_thread, InMemoryMetadataStore.update_thread


def no_terminal_guard(self: Any, finish: Any) -> bool:
    run = self._runs.get(finish["run_id"])
    if run is None or run["worker_id"] != finish["worker_id"]:
        return False
    _end(self, run, finish)
    return True


def no_fence(self: Any, finish: Any) -> bool:
    run = self._runs.get(finish["run_id"])
    return bool(_finish(self, finish if run is None else {**finish, "worker_id": run["worker_id"]}))


def the_last_late_outcome(self: Any, finish: Any) -> bool:
    run = self._runs.get(finish["run_id"])
    if run is not None and run["status"] not in ("pending", "running"):
        run["late_outcome"] = None
    return bool(_finish(self, finish))


def without_owner(name: str) -> Callable[..., Awaitable[Any]]:
    original = getattr(InMemoryMetadataStore, name)

    async def operation(self: Any, *arguments: Any, **named: Any) -> Any:
        named.pop("owner", None)
        return await original(self, *arguments, **named)

    return operation


def the_end_links_any_thread(self: Any, run: Any, finish: Any) -> None:
    if run["thread_id"] is None and finish["thread_id"] in self._threads:
        run["thread_id"] = finish["thread_id"]
    _end(self, run, finish)


async def runs_survive_their_thread(self: Any, thread_id: str, **named: Any) -> None:
    kept = dict(self._runs)
    await _delete(self, thread_id, **named)
    self._runs.update(kept)


async def ignoring_more_than_one_run(self: Any, thread_id: str, **named: Any) -> None:
    await _delete(self, thread_id, **{**named, "force": named.get("force") or named.get("ignore_run") is not None})


def the_clock_goes_back(self: Any, thread_id: Any, run_id: str, status: Any, at: Any) -> None:
    _settle(self, thread_id, run_id, status, at)
    if status is not None and thread_id in self._threads:
        self._threads[thread_id]["updated_at"] = at


async def config_is_merged(self: Any, thread_id: str, *, config: Any = None, **named: Any) -> Any:
    thread = self._threads.get(thread_id)
    merged = config if config is None or thread is None else {**thread["config"], **config}
    return await _update(self, thread_id, config=merged, **named)


async def pruned_to_nothing(self: Any, thread_ids: Any, *, strategy: str = "") -> None:
    CompleteInMemorySaver.prune(self, thread_ids, strategy="delete")


BUGS: list[tuple[str, Any, str, Any]] = [
    ("no guard of terminal statuses", InMemoryMetadataStore, "_finish", no_terminal_guard),
    ("no fence by the worker", InMemoryMetadataStore, "_finish", no_fence),
    ("the last late outcome is kept", InMemoryMetadataStore, "_finish", the_last_late_outcome),
    ("the end links another owner's thread", InMemoryMetadataStore, "_end", the_end_links_any_thread),
    ("updated_at goes back", InMemoryMetadataStore, "_settle", the_clock_goes_back),
    *(
        (f"{name} ignores the owner", InMemoryMetadataStore, name, without_owner(name))
        for name in ("search_runs", "search_threads", "get_run", "get_thread", "update_run", "update_thread")
    ),
    ("delete_thread ignores the owner", InMemoryMetadataStore, "delete_thread", without_owner("delete_thread")),
    ("a start on another owner's thread", InMemoryMetadataStore, "_refuse_other_owner", lambda self, *_: None),
    ("runs survive their thread", InMemoryMetadataStore, "delete_thread", runs_survive_their_thread),
    ("more than one run is ignored", InMemoryMetadataStore, "delete_thread", ignoring_more_than_one_run),
    ("a busy thread reads idle", InMemoryMetadataStore, "_with_status", lambda self, thread: thread),
    ("config is merged", InMemoryMetadataStore, "update_thread", config_is_merged),
    (
        "unfinished runs count as the earliest",
        store,
        "_sort_key",
        lambda row, column: (row[column] is not None, row[column] or 0),
    ),
    ("true equals 1", store, "_json_equal", lambda stored, wanted: stored == wanted),
    ("the owner is not checked in reads", Run, "must_check", lambda self, thread_id: False),
    ("keep_latest keeps none", StampedInMemorySaver, "aprune", pruned_to_nothing),
    ("nothing is stamped", stamping, "stamped_metadata", lambda run, metadata: metadata),
]


@pytest.mark.parametrize(("where", "name", "broken"), [one[1:] for one in BUGS], ids=[one[0] for one in BUGS])
def test_a_bug_is_found(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Any) -> None:
    monkeypatch.setattr(where, name, broken)
    with bench_of("memory", None) as bench, pytest.raises(AssertionError):
        compare(bench, EXAMPLES, shrink=False)
