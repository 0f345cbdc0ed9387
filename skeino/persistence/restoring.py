"""Rows that are put back as they were, checked once for all backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skeino.errors import InvalidInputError
from skeino.persistence.protocol import MAX_LIMIT
from skeino.persistence.queries import check_outcome, checked_error, checked_ttl, one_of
from skeino.persistence.rows import ACTIVE_STATUSES, RUN_STATUSES, THREAD_STATUSES, RunRow, ThreadRow
from skeino.validation import (
    validate_id,
    validate_run_id,
    validate_stored_json_object,
    validate_thread_id,
    validate_time,
)


def restored_threads(rows: Sequence[ThreadRow]) -> list[ThreadRow]:
    """Copies of the rows that `restore_threads` writes, each id once. `busy` is not stored: it becomes `idle`.

    Raises:
        InvalidInputError: a row is incomplete or not storable, or there are more than 1000.
    """
    checked = [_thread(row) for row in _at_most(rows)]
    return [*{row["thread_id"]: row for row in reversed(checked)}.values()][::-1]


def restored_runs(rows: Sequence[RunRow]) -> list[RunRow]:
    """Copies of the rows that `restore_runs` writes, each id once.

    Raises:
        InvalidInputError: a row is incomplete or not storable, or there are more than 1000.
    """
    checked = [_run(row) for row in _at_most(rows)]
    return [*{row["run_id"]: row for row in reversed(checked)}.values()][::-1]


def owners_of_threads(runs: Sequence[RunRow]) -> set[tuple[str, str | None]]:
    """The threads that these runs need, each with the owner it must have."""
    return {(run["thread_id"], run["owner"]) for run in runs if run["thread_id"] is not None}


def _thread(row: ThreadRow) -> ThreadRow:
    _complete(row, ThreadRow)
    one_of(row["status"], THREAD_STATUSES, "status")
    return ThreadRow(
        thread_id=validate_thread_id(row["thread_id"]),
        owner=None if row["owner"] is None else validate_id(row["owner"], "owner"),
        status="idle" if row["status"] == "busy" else row["status"],
        metadata=validate_stored_json_object(row["metadata"], "metadata"),
        config=validate_stored_json_object(row["config"], "config"),
        ttl=checked_ttl(row["ttl"]),
        created_at=validate_time(row["created_at"], "created_at"),
        updated_at=validate_time(row["updated_at"], "updated_at"),
    )


def _run(row: RunRow) -> RunRow:
    _complete(row, RunRow)
    one_of(row["status"], RUN_STATUSES, "status")
    if (row["finished_at"] is None) != (row["status"] in ACTIVE_STATUSES):
        raise InvalidInputError("finished_at is the time of a run's end: it is None exactly while a run is active.")
    check_outcome(row)
    late = row["late_outcome"]
    return RunRow(
        run_id=validate_run_id(row["run_id"]),
        thread_id=None if row["thread_id"] is None else validate_thread_id(row["thread_id"]),
        owner=None if row["owner"] is None else validate_id(row["owner"], "owner"),
        worker_id=validate_id(row["worker_id"], "worker_id"),
        status=row["status"],
        metadata=validate_stored_json_object(row["metadata"], "metadata"),
        kwargs=validate_stored_json_object(row["kwargs"], "kwargs"),
        error=None if row["error"] is None else checked_error(row["error"]),
        http_status=row["http_status"],
        created_at=validate_time(row["created_at"], "created_at"),
        started_at=validate_time(row["started_at"], "started_at"),
        finished_at=None if row["finished_at"] is None else validate_time(row["finished_at"], "finished_at"),
        checkpoint_count=row["checkpoint_count"],
        first_checkpoint_id=row["first_checkpoint_id"],
        last_checkpoint_id=row["last_checkpoint_id"],
        paused=row["paused"],
        late_outcome=None if late is None else validate_stored_json_object(late, "late_outcome"),
    )


def _at_most(rows: Sequence[Any]) -> Sequence[Any]:
    if len(rows) > MAX_LIMIT:
        raise InvalidInputError(f"{len(rows)} rows are too many for one call: at most {MAX_LIMIT} are allowed.")
    return rows


def _complete(row: object, kind: type[Any]) -> None:
    if not isinstance(row, Mapping) or set(row) != set(kind.__annotations__):
        raise InvalidInputError(f"A row must be a {kind.__name__}, with all of its fields.")
