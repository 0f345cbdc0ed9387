"""What a metadata store and a checkpointer have to answer, in plain Python: one model for all backends.

Nothing here knows a database. A time that the store takes from the clock is unknown to the model until it is read: the
row says `NOW` with the moment before, and `learned` puts the store's own in its place if it lies between then and now.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from skeino.errors import RunNotFoundError, StoreError, ThreadBusyError, ThreadExistsError, ThreadNotFoundError
from skeino.persistence import ANY_OWNER

Row = dict[str, Any]

ACTIVE: Final = ("pending", "running")
CLOCK: Final = timedelta(milliseconds=1)
"""Two readings of the clock, one by a float, may be in the wrong order by so little."""


@dataclass(frozen=True)
class Now:
    """A time that the store takes from the clock: this one or later, but not earlier than `least`, if that is given."""

    since: datetime
    least: datetime | None = None


def now(least: Any = None) -> Any:
    """The clock's time, or `least` (a time, or one that is not known either), whichever is later."""
    return Now(datetime.now(UTC) - CLOCK, least.least if isinstance(least, Now) else least)


@dataclass
class Model:
    """Threads, runs and checkpoints as they have to be. Each operation returns or raises what the store must."""

    threads: dict[str, Row] = field(default_factory=dict)
    runs: dict[str, Row] = field(default_factory=dict)
    checkpoints: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    """By thread, from the oldest to the newest: the checkpoint's id, and the run that is stamped on it."""

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    def start_run(
        self,
        run_id: str,
        worker_id: str,
        thread_id: str | None,
        owner: str | None,
        metadata: Row,
        at: Any,
        create_thread: bool,
    ) -> None:
        if thread_id is not None:
            self._refuse_other_owner(thread_id, owner)
        if run_id in self.runs:
            return
        tied = thread_id if create_thread else None
        if tied is not None:
            self.threads.setdefault(tied, _thread(tied, owner, at))
        self.runs[run_id] = {
            "run_id": run_id,
            "thread_id": tied,
            "owner": owner,
            "worker_id": worker_id,
            "status": "running",
            "metadata": deepcopy(metadata),
            "kwargs": {},
            "error": None,
            "http_status": None,
            "created_at": at,
            "started_at": at,
            "finished_at": None,
            "checkpoint_count": 0,
            "first_checkpoint_id": None,
            "last_checkpoint_id": None,
            "paused": False,
            "late_outcome": None,
        }

    def attach_thread(self, run_id: str, thread_id: str, owner: str | None) -> None:
        self._refuse_other_owner(thread_id, owner)
        self.threads.setdefault(thread_id, _thread(thread_id, owner, now()))
        run = self.runs.get(run_id)
        if run is not None and run["thread_id"] is None and run["status"] in ACTIVE:
            run["thread_id"] = thread_id

    def finish_run(self, finish: Row) -> bool:
        run = self.runs.get(finish["run_id"])
        if run is None or run["worker_id"] != finish["worker_id"]:
            return False
        if run["status"] not in ACTIVE:
            if (run["status"], run["finished_at"]) == (finish["status"], finish["finished_at"]):
                return True
            if run["late_outcome"] is None:
                late = {name: value for name, value in finish.items() if name not in ("run_id", "worker_id")}
                run["late_outcome"] = {**late, "finished_at": finish["finished_at"].isoformat(timespec="microseconds")}
            return False
        chosen = self.threads.get(finish["thread_id"] or "")
        if run["thread_id"] is None and chosen is not None and chosen["owner"] == run["owner"]:
            run["thread_id"] = finish["thread_id"]
        self._settle(run["thread_id"], finish["thread_status"], finish["finished_at"])
        changed = {name: value for name, value in finish.items() if name not in ("thread_id", "thread_status")}
        run.update(deepcopy({**changed, "metadata": {**run["metadata"], **finish["metadata"]}}))
        return True

    def interrupt_runs(self, worker_id: str, error: Row) -> int:
        mine = [run for run in self.runs.values() if run["worker_id"] == worker_id and run["status"] in ACTIVE]
        for run in mine:
            thread = self.threads.get(run["thread_id"] or "")
            self._settle(run["thread_id"], "interrupted", now(None if thread is None else thread["updated_at"]))
            run.update(status="interrupted", finished_at=now(), error=error)
        return len(mine)

    def get_run(self, run_id: str, owner: Any) -> Row | None:
        run = self.runs.get(run_id)
        return run if run is not None and _is_of(run, owner) else None

    def update_run(self, run_id: str, metadata: Row, owner: Any) -> Row:
        run = self.get_run(run_id, owner)
        if run is None:
            raise RunNotFoundError
        run["metadata"] = {**run["metadata"], **deepcopy(metadata)}
        return run

    def restore_runs(self, rows: list[Row]) -> int:
        for row in rows:
            thread = self.threads.get(row["thread_id"] or "")
            if row["thread_id"] is not None and (thread is None or thread["owner"] != row["owner"]):
                raise ThreadNotFoundError
        new = {row["run_id"]: deepcopy(row) for row in reversed(rows) if row["run_id"] not in self.runs}
        self.runs.update(new)
        return len(new)

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    def create_thread(self, thread_id: str, owner: str | None, metadata: Row, ttl: Any, if_exists: str) -> Row:
        if thread_id in self.threads:
            if if_exists == "raise":
                raise ThreadExistsError
            self._refuse_other_owner(thread_id, owner)
        else:
            row = {**_thread(thread_id, owner, now()), "metadata": deepcopy(metadata), "ttl": ttl}
            self.threads[thread_id] = row
        return self._seen(thread_id)

    def get_thread(self, thread_id: str, owner: Any) -> Row | None:
        thread = self.threads.get(thread_id)
        return self._seen(thread_id) if thread is not None and _is_of(thread, owner) else None

    def update_thread(self, thread_id: str, metadata: Row | None, config: Row | None, ttl: Any, owner: Any) -> Row:
        if self.get_thread(thread_id, owner) is None:
            raise ThreadNotFoundError
        thread = self.threads[thread_id]
        thread["metadata"] = {**thread["metadata"], **deepcopy(metadata or {})}
        thread["config"] = thread["config"] if config is None else deepcopy(config)
        thread["ttl"] = thread["ttl"] if ttl == "keep" else ttl
        thread["updated_at"] = now()
        return self._seen(thread_id)

    def delete_thread(self, thread_id: str, force: bool, owner: Any, ignore_run: str | None) -> None:
        if self.get_thread(thread_id, owner) is None:
            raise ThreadNotFoundError
        if not force and any(run_id != ignore_run for run_id in self._active_on(thread_id)):
            raise ThreadBusyError
        del self.threads[thread_id]
        for run_id in [run_id for run_id, run in self.runs.items() if run["thread_id"] == thread_id]:
            if run_id == ignore_run:
                self.runs[run_id]["thread_id"] = None
            else:
                del self.runs[run_id]

    def restore_threads(self, rows: list[Row]) -> int:
        new = {
            row["thread_id"]: {**deepcopy(row), "status": "idle" if row["status"] == "busy" else row["status"]}
            for row in reversed(rows)
            if row["thread_id"] not in self.threads
        }
        self.threads.update(new)
        return len(new)

    # ── Searches ─────────────────────────────────────────────────────────────────────────────────────────

    def all_threads(self) -> list[Row]:
        return [self._seen(thread_id) for thread_id in self.threads]

    def all_runs(self) -> list[Row]:
        return [*self.runs.values()]

    # ── Checkpoints ──────────────────────────────────────────────────────────────────────────────────────

    def owned(self, thread_id: str, owner: Any) -> list[tuple[str, str | None]]:
        """The thread's checkpoints, from the newest to the oldest, as a run of this owner reads them."""
        self._refuse_other_owner(thread_id, owner)
        return self.checkpoints.get(thread_id, [])[::-1]

    def copy_thread(self, source: str, target: str) -> None:
        if self.checkpoints.get(target):
            raise ThreadExistsError
        if self.checkpoints.get(source):
            self.checkpoints[target] = [*self.checkpoints[source]]

    def prune(self, thread_id: str) -> None:
        self.checkpoints[thread_id] = self.checkpoints.get(thread_id, [])[-1:]

    def delete_for_runs(self, run_ids: list[str]) -> None:
        for thread_id, found in self.checkpoints.items():
            self.checkpoints[thread_id] = [one for one in found if one[1] not in run_ids]

    # ── What follows ─────────────────────────────────────────────────────────────────────────────────────

    def learned(self, threads: list[Row], runs: list[Row]) -> None:
        """Put the times that the store took from the clock in the place of those that were not known."""
        for mine, theirs, key in ((self.threads, threads, "thread_id"), (self.runs, runs, "run_id")):
            for row in theirs:
                known = mine.get(row[key], {})
                for name, value in known.items():
                    if isinstance(value, Now):
                        known[name] = _learned(value, row[name])

    def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        thread = self.threads.get(thread_id)
        if thread is not None and thread["owner"] != owner:
            raise ThreadNotFoundError

    def _active_on(self, thread_id: str) -> list[str]:
        return [
            run_id for run_id, run in self.runs.items() if run["thread_id"] == thread_id and run["status"] in ACTIVE
        ]

    def _seen(self, thread_id: str) -> Row:
        thread = self.threads[thread_id]
        return {**thread, "status": "busy"} if self._active_on(thread_id) else thread

    def _settle(self, thread_id: str | None, status: str | None, at: Any) -> None:
        thread = self.threads.get(thread_id or "")
        if thread is not None and status is not None:
            thread["status"] = status
            before = thread["updated_at"]
            thread["updated_at"] = at if isinstance(at, Now) or isinstance(before, Now) else max(before, at)


def answer_of(call: Any) -> Any:
    """What the model answers: a value, or the class of the error."""
    try:
        return deepcopy(call())
    except StoreError as exc:
        return type(exc)


def _thread(thread_id: str, owner: str | None, at: Any) -> Row:
    return {
        "thread_id": thread_id,
        "owner": owner,
        "status": "idle",
        "metadata": {},
        "config": {},
        "ttl": None,
        "created_at": at,
        "updated_at": at,
    }


def _is_of(row: Row, owner: Any) -> bool:
    return owner is ANY_OWNER or row["owner"] == owner


def _learned(time: Now, actual: datetime) -> datetime:
    least = time.since if time.least is None else max(time.since, time.least)
    assert least <= actual, f"a time is too early: {actual}"
    assert actual <= max(datetime.now(UTC) + CLOCK, least), f"a time is too late: {actual}"
    return actual
