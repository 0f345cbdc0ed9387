"""Which checkpoints go when a thread is pruned, or when what runs wrote is deleted. Decided once for all backends.

Nothing here reads or writes: a backend hands in the outlines of a thread's checkpoints and deletes what it is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, get_args

from skeino.errors import DeltaChannelError, InvalidInputError
from skeino.validation import validate_id, validate_thread_id

PruneStrategy = Literal["keep_latest", "delete"]
"""LangGraph's: keep each namespace's latest checkpoint, or none (`BaseCheckpointSaver.prune`)."""

# What LangGraph, and LangGraph.js, leave in the metadata of threads that use a `DeltaChannel`.
_DELTA_MARKS: Final = ("counters_since_delta_snapshot", "delta_writes_versioned")


class CheckpointOutline(NamedTuple):
    """A checkpoint without its state."""

    thread_id: str
    namespace: str
    checkpoint_id: str
    parent_id: str | None
    metadata: Mapping[str, Any]


def all_but_latest(outlines: Iterable[CheckpointOutline]) -> list[CheckpointOutline]:
    """The checkpoints of one thread that "keep_latest" deletes, given all of them in any order.

    A namespace that stands for one call of a subgraph goes with the root checkpoint that made the call. The rule is
    that of LangGraph's own PostgreSQL saver.

    Raises:
        DeltaChannelError: the thread has delta channels, which are rebuilt from the older checkpoints.
    """
    outlines = list(outlines)
    heads = _latest(outlines)
    if len(heads) == len(outlines):
        return []
    refused = next((one for one in outlines if _has_delta(one)), None)
    if refused is not None:
        raise DeltaChannelError(
            f"The thread {refused.thread_id!r} has delta channels, which are rebuilt from its older checkpoints: "
            "it cannot be pruned to the latest ones, and nothing was deleted."
        )
    kept = {one[:3] for one in heads}
    roots = {one.checkpoint_id: one[:3] for one in outlines if one.namespace == ""}
    ended_calls = {
        one.namespace
        for one in heads
        if ":" in one.namespace and (root := _root_of(one)) in roots and roots[root] not in kept
    }
    return [one for one in outlines if one.namespace in ended_calls or one[:3] not in kept]


def of_runs(outlines: Iterable[CheckpointOutline], run_ids: Collection[str]) -> list[CheckpointOutline]:
    """The checkpoints of one thread that these runs wrote.

    Args:
        outlines: all checkpoints of the thread, in any order.
        run_ids: as they stand in the checkpoints' metadata.

    Raises:
        DeltaChannelError: the thread has delta channels, and one that stays is rebuilt from one that would go.
    """
    outlines, run_ids = list(outlines), set(run_ids)
    gone = [one for one in outlines if _run_of(one) in run_ids]
    places = {(one.namespace, one.checkpoint_id) for one in gone}
    for one in outlines if any(_has_delta(one) for one in outlines) else ():
        if (one.namespace, one.checkpoint_id) not in places and (one.namespace, one.parent_id) in places:
            raise DeltaChannelError(
                f"The thread {one.thread_id!r} has delta channels, and later checkpoints are rebuilt from those of the "
                "runs to delete: delete the later runs with them, or the thread; nothing was deleted."
            )
    return gone


def checked_run_ids(run_ids: Sequence[str]) -> list[str]:
    """The ids, each once.

    Raises:
        InvalidInputError: it is one string, or no collection, or one of them is no id.
    """
    return list(dict.fromkeys(validate_id(run_id, "run_id") for run_id in _listed(run_ids, "run_ids", "run ids")))


def checked_thread_ids(thread_ids: Sequence[str]) -> list[str]:
    """The ids, each once.

    Raises:
        InvalidInputError: as `checked_run_ids`.
    """
    return list(dict.fromkeys(validate_thread_id(one) for one in _listed(thread_ids, "thread_ids", "thread ids")))


def checked_prune(thread_ids: Sequence[str], strategy: str) -> tuple[list[str], PruneStrategy]:
    """The thread ids, each once, and the strategy.

    Raises:
        InvalidInputError: as `checked_run_ids`; or there is no such strategy.
    """
    checked = checked_thread_ids(thread_ids)
    if strategy not in get_args(PruneStrategy):
        raise InvalidInputError(f"There is no strategy of that name: use {' or '.join(get_args(PruneStrategy))}.")
    return checked, strategy  # type: ignore[return-value]


def checked_copy(source_thread_id: str, target_thread_id: str) -> tuple[str, str]:
    """Both ids.

    Raises:
        InvalidInputError: one of them is none, or they are the same.
    """
    if source_thread_id == target_thread_id:
        raise InvalidInputError(f"The thread {source_thread_id!r} cannot be copied onto itself: name another target.")
    return validate_thread_id(source_thread_id), validate_thread_id(target_thread_id)


def target_exists(thread_id: str) -> str:
    """The sentence of the `ThreadExistsError` when the target of a copy has state already."""
    return f"The thread {thread_id!r} has checkpoints already: copy to a new thread id."


def _listed(ids: object, name: str, what: str) -> Collection[object]:
    if isinstance(ids, str):
        raise InvalidInputError(f"{name} must be a list of {what}, not one string.")
    if not isinstance(ids, Collection) or isinstance(ids, Mapping):
        raise InvalidInputError(f"{name} must be a list of {what}, not {type(ids).__name__}.")
    return ids


def _latest(outlines: Iterable[CheckpointOutline]) -> list[CheckpointOutline]:
    """The latest checkpoint of each namespace: ids sort by time."""
    ordered = sorted(outlines, key=attrgetter("namespace", "checkpoint_id"))
    return [[*group][-1] for _, group in groupby(ordered, key=attrgetter("namespace"))]


def _has_delta(outline: CheckpointOutline) -> bool:
    return any(mark in outline.metadata for mark in _DELTA_MARKS)


def _root_of(outline: CheckpointOutline) -> str | None:
    """The root graph's checkpoint that a subgraph's checkpoint started from."""
    parents = outline.metadata.get("parents")
    root = parents.get("") if isinstance(parents, Mapping) else None
    return root if isinstance(root, str) else None  # metadata may be anything that is JSON


def _run_of(outline: CheckpointOutline) -> str | None:
    run_id = outline.metadata.get("run_id")
    return run_id if isinstance(run_id, str) else None
