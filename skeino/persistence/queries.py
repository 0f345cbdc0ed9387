"""The arguments of a metadata store's operations, checked and brought into one form for every backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from skeino.errors import InvalidInputError
from skeino.persistence.protocol import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    NewThread,
    RunSearch,
    RunSort,
    RunStart,
    Search,
    SortOrder,
    ThreadSearch,
    ThreadSort,
)
from skeino.persistence.rows import (
    ANY_OWNER,
    RUN_STATUSES,
    TERMINAL_STATUSES,
    THREAD_STATUSES,
    OwnerFilter,
    RunError,
    RunFinish,
    RunRow,
    ThreadRow,
    ThreadTTL,
)
from skeino.validation import (
    Scalar,
    validate_id,
    validate_json_object,
    validate_metadata_filter,
    validate_optional_json_object,
    validate_run_id,
    validate_thread_id,
    validate_time,
)

MAX_OFFSET = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Query:
    """A search, checked: None in a field means that it does not filter."""

    statuses: tuple[str, ...] | None
    metadata: dict[str, Scalar] | None
    ids: tuple[str, ...] | None
    owner: OwnerFilter
    created_after: datetime | None
    created_before: datetime | None
    sort_by: str
    descending: bool
    limit: int
    offset: int
    thread_id: str | None


def run_query(search: RunSearch) -> Query:
    """The arguments of `search_runs`, checked.

    Raises:
        InvalidInputError: one of them cannot be meant.
    """
    _refuse_unknown(search, RunSearch.__optional_keys__)
    thread_id = search.get("thread_id")
    return _query(
        search,
        statuses=_statuses(search.get("status"), RUN_STATUSES),
        ids=_ids(search.get("ids"), validate_run_id),
        sort_by=one_of(search.get("sort_by", "created_at"), get_args(RunSort), "sort_by"),
        thread_id=None if thread_id is None else validate_thread_id(thread_id),
    )


def thread_query(search: ThreadSearch) -> Query:
    """The arguments of `search_threads`, checked.

    Raises:
        InvalidInputError: one of them cannot be meant.
    """
    _refuse_unknown(search, ThreadSearch.__optional_keys__)
    return _query(
        search,
        statuses=_statuses(search.get("status"), THREAD_STATUSES),
        ids=_ids(search.get("ids"), validate_thread_id),
        sort_by=one_of(search.get("sort_by", "updated_at"), get_args(ThreadSort), "sort_by"),
        thread_id=None,
    )


def _query(
    search: Search,
    *,
    statuses: tuple[str, ...] | None,
    ids: tuple[str, ...] | None,
    sort_by: str,
    thread_id: str | None,
) -> Query:
    metadata = search.get("metadata")
    after, before = search.get("created_after"), search.get("created_before")
    return Query(
        statuses=statuses,
        metadata=None if metadata is None else validate_metadata_filter(metadata) or None,
        ids=ids,
        owner=checked_owner(search.get("owner", ANY_OWNER)),
        created_after=None if after is None else validate_time(after, "created_after"),
        created_before=None if before is None else validate_time(before, "created_before"),
        sort_by=sort_by,
        descending=one_of(search.get("sort_order", "desc"), get_args(SortOrder), "sort_order") == "desc",
        limit=_whole_number(search.get("limit", DEFAULT_LIMIT), "limit", 1, MAX_LIMIT),
        offset=_whole_number(search.get("offset", 0), "offset", 0, MAX_OFFSET),
        thread_id=thread_id,
    )


def new_run(run_id: str, worker_id: str, start: RunStart) -> RunRow:
    """The row that `start_run` writes, checked.

    Raises:
        InvalidInputError: an id or a JSON value is not storable.
    """
    _refuse_unknown(start, RunStart.__optional_keys__)
    thread_id, owner, created_at = start.get("thread_id"), start.get("owner"), start.get("created_at")
    now = datetime.now(UTC) if created_at is None else validate_time(created_at, "created_at")
    return RunRow(
        run_id=validate_run_id(run_id),
        thread_id=None if thread_id is None else validate_thread_id(thread_id),
        owner=None if owner is None else validate_id(owner, "owner"),
        worker_id=validate_id(worker_id, "worker_id"),
        status="running",
        metadata=validate_optional_json_object(start.get("metadata"), "metadata"),
        kwargs=validate_optional_json_object(start.get("kwargs"), "kwargs"),
        error=None,
        http_status=None,
        created_at=now,
        started_at=now,
        finished_at=None,
        checkpoint_count=0,
        first_checkpoint_id=None,
        last_checkpoint_id=None,
        paused=False,
        late_outcome=None,
    )


def new_thread(
    thread_id: str,
    thread: NewThread,
    created_at: datetime | None = None,
    *,
    default_ttl: ThreadTTL | None = None,
) -> ThreadRow:
    """The row of a new thread, checked; `default_ttl` is for one that says nothing of a `ttl`, not even None.

    Raises:
        InvalidInputError: an id or a JSON value is not storable.
    """
    _refuse_unknown(thread, NewThread.__optional_keys__)
    owner = thread.get("owner")
    now = datetime.now(UTC) if created_at is None else created_at
    return ThreadRow(
        thread_id=validate_thread_id(thread_id),
        owner=None if owner is None else validate_id(owner, "owner"),
        status="idle",
        metadata=validate_optional_json_object(thread.get("metadata"), "metadata"),
        config=validate_optional_json_object(thread.get("config"), "config"),
        ttl=checked_ttl(thread.get("ttl", default_ttl)),
        created_at=now,
        updated_at=now,
    )


def checked_finish(finish: RunFinish) -> RunFinish:
    """A copy of how a run ended, checked.

    Raises:
        InvalidInputError: a value is not storable, or the status is not a terminal one.
    """
    if not isinstance(cast("object", finish), Mapping) or finish.keys() != RunFinish.__required_keys__:
        raise InvalidInputError("finish must be a RunFinish, with all of its fields.")
    checked = finish.copy()
    validate_run_id(finish["run_id"])
    validate_id(finish["worker_id"], "worker_id")
    one_of(finish["status"], TERMINAL_STATUSES, "status")
    checked["finished_at"] = validate_time(finish["finished_at"], "finished_at")
    if finish["thread_id"] is not None:
        validate_thread_id(finish["thread_id"])
    if finish["thread_status"] is not None:
        one_of(finish["thread_status"], ("idle", "interrupted", "error"), "thread_status")
    checked["metadata"] = validate_json_object(finish["metadata"], "metadata")
    checked["error"] = None if finish["error"] is None else checked_error(finish["error"])
    check_outcome(finish)
    return checked


def check_outcome(end: RunFinish | RunRow) -> None:
    """What the end of a run, or its row, says of its response and its ledger.

    Raises:
        InvalidInputError: a value is not storable.
    """
    if end["http_status"] is not None:
        _whole_number(end["http_status"], "http_status", 100, 999)
    if not isinstance(cast("object", end["paused"]), bool):
        raise InvalidInputError("paused must be True or False.")
    _whole_number(end["checkpoint_count"], "checkpoint_count", 0, 2**31 - 1)
    for name in ("first_checkpoint_id", "last_checkpoint_id"):
        if (checkpoint_id := end[name]) is not None:
            validate_id(checkpoint_id, name)


def late_outcome_of(finish: RunFinish) -> dict[str, Any]:
    """What is kept of a checked finish that came too late."""
    kept = {name: value for name, value in finish.items() if name not in ("run_id", "worker_id")}
    return {**kept, "finished_at": finish["finished_at"].isoformat(timespec="microseconds")}


def checked_error(error: RunError) -> RunError:
    """A copy of a run's error, checked.

    Raises:
        InvalidInputError: it is not what `RunError` says.
    """
    copied = validate_json_object(error, "error")
    if not (
        set(copied) == {"code", "type", "message"}
        and isinstance(copied["code"], str)
        and isinstance(copied["message"], str)
        and isinstance(copied["type"], str | None)
    ):
        raise InvalidInputError("error must have a code, a type (or None) and a message, all of them text.")
    return cast("RunError", copied)


def checked_ttl(ttl: ThreadTTL | None) -> ThreadTTL | None:
    """A copy of a thread's TTL, checked: minutes above zero and a known strategy."""
    if ttl is None:
        return None
    if not isinstance(cast("object", ttl), Mapping) or set(ttl) != {"strategy", "ttl"}:
        raise InvalidInputError("ttl must be {'strategy': 'delete' or 'keep_latest', 'ttl': minutes}.")
    one_of(ttl["strategy"], ("delete", "keep_latest"), "ttl's strategy")
    minutes: object = ttl["ttl"]
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= 10**9:
        raise InvalidInputError("ttl must be a number of minutes above zero.")
    return ThreadTTL(strategy=ttl["strategy"], ttl=float(minutes))


def checked_if_exists(choice: str) -> str:
    """`create_thread`'s choice, checked."""
    return one_of(choice, ("raise", "do_nothing"), "if_exists")


def checked_ttl_change(ttl: ThreadTTL | Literal["keep"] | None) -> ThreadTTL | Literal["keep"] | None:
    """As `checked_ttl`; "keep" leaves the thread's TTL as it is."""
    return "keep" if ttl == "keep" else checked_ttl(ttl)


def _refuse_unknown(given: Mapping[str, Any], known: frozenset[str]) -> None:
    """What Python does for named parameters: a misspelt condition would match everything."""
    if not given.keys() <= known:
        name = next(name for name in given if name not in known)
        raise TypeError(f"there is no argument {name!r}: known are {', '.join(sorted(known))}")


def _statuses(status: str | Collection[str] | None, known: tuple[str, ...]) -> tuple[str, ...] | None:
    if status is None:
        return None
    wanted = (status,) if isinstance(status, str) else _members(status, "status")
    return tuple(dict.fromkeys(one_of(one, known, "status") for one in wanted))


def _ids(ids: Collection[str] | None, validate: Any) -> tuple[str, ...] | None:
    if ids is None:
        return None
    return tuple(dict.fromkeys(validate(one) for one in _members(ids, "ids")))


def _members(values: object, name: str) -> tuple[object, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise InvalidInputError(f"{name} must be a collection, not {type(values).__name__}.")
    if len(values) > MAX_LIMIT:
        raise InvalidInputError(f"{name} has {len(values)} entries: at most {MAX_LIMIT} are allowed.")
    return tuple(values)


def checked_owner(owner: OwnerFilter) -> OwnerFilter:
    """The owner to filter by, checked; None and `ANY_OWNER` as they are."""
    return owner if owner is None or owner is ANY_OWNER else validate_id(owner, "owner")


def one_of(value: object, known: Collection[str], name: str) -> str:
    """The word, if it is one of those that are known."""
    plain = str.__str__(value) if isinstance(value, str) else None
    if plain is None or plain not in known:
        raise InvalidInputError(f"{name} must be one of {', '.join(known)}.")
    return plain


def _whole_number(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInputError(f"{name} must be a whole number from {least} to {most}.")
    return value
