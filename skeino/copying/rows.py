"""The rows of threads and runs: read page by page, put back, read back and compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast

from skeino.copying.report import CopyProgress, CopyReport, OnProgress
from skeino.errors import InvalidInputError, ThreadNotFoundError
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import ACTIVE_STATUSES, RunRow, ThreadRow

RowT = TypeVar("RowT", ThreadRow, RunRow)

PAGE: Final = 200


async def copy_rows(
    source: MetadataStoreProtocol,
    target: MetadataStoreProtocol | None,
    report: CopyReport,
    on_progress: OnProgress,
    *,
    strangers: Callable[[Sequence[str]], Awaitable[set[str]]] | None = None,
) -> None:
    """Put the source's threads back at the target, then its runs; without a target, count them.

    The runs of a thread whose id is another thread's at the target stay behind. So does a thread that `strangers`
    names: of its id the target has state that is no copy, which would become the property of its owner.
    """
    others: set[str] = set()
    async for threads in pages_of(source.search_threads):
        report.threads.found += len(threads)
        if target is not None:
            left = set() if strangers is None else await strangers([row["thread_id"] for row in threads])
            moving_threads = [row for row in threads if row["thread_id"] not in left]
            new = await _restored(target.restore_threads, moving_threads, report)
            report.threads.copied += new
            others |= left
            if new < len(moving_threads):
                others |= await _other_threads(moving_threads, target)
        on_progress(CopyProgress("threads", report.threads.found, None))
    async for runs in pages_of(source.search_runs):
        report.runs.found += len(runs)
        report.active_runs += sum(run["status"] in ACTIVE_STATUSES for run in runs)
        if target is not None:
            moving = [run for run in runs if run["thread_id"] not in others]
            report.runs.copied += await _restored(target.restore_runs, moving, report)
        on_progress(CopyProgress("runs", report.runs.found, None))


async def compare_rows(
    source: MetadataStoreProtocol, target: MetadataStoreProtocol, report: CopyReport, on_progress: OnProgress
) -> None:
    """Read all rows again, on both sides, and report those that differ."""
    total, done = report.threads.found + report.runs.found, 0
    async for threads in pages_of(source.search_threads):
        found = await target.search_threads(ids=[_id_of(row) for row in threads], limit=PAGE)
        _compare(threads, {_id_of(row): row for row in found}, report)
        done += len(threads)
        on_progress(CopyProgress("verification", done, total))
    async for runs in pages_of(source.search_runs):
        there = await target.search_runs(ids=[_id_of(row) for row in runs], limit=PAGE)
        _compare(runs, {_id_of(row): row for row in there}, report)
        done += len(runs)
        on_progress(CopyProgress("verification", done, total))


async def pages_of(search: Callable[..., Awaitable[list[RowT]]]) -> AsyncIterator[list[RowT]]:
    """All rows, oldest first. A page begins at the time where the last one ended: offsets stay small."""
    after: datetime | None = None
    passed = 0  # rows of that very time which were seen already
    while True:
        since = {} if after is None else {"created_after": after, "offset": passed}
        page = await search(sort_by="created_at", sort_order="asc", limit=PAGE, **since)
        if not page:
            return
        yield page
        last = page[-1]["created_at"]
        passed = sum(row["created_at"] == last for row in page) + (passed if last == after else 0)
        after = last


def is_same_thread(one: ThreadRow, other: ThreadRow) -> bool:
    """Whether two rows are of one thread, which may have changed since, rather than of two with the same id."""
    return (one["owner"], one["created_at"]) == (other["owner"], other["created_at"])


async def _other_threads(rows: Sequence[ThreadRow], target: MetadataStoreProtocol) -> set[str]:
    there = await target.search_threads(ids=[row["thread_id"] for row in rows], limit=PAGE)
    copies = {row["thread_id"]: row for row in there}
    return {
        row["thread_id"]
        for row in rows
        if row["thread_id"] in copies and not is_same_thread(row, copies[row["thread_id"]])
    }


async def _restored(
    restore: Callable[[Sequence[RowT]], Awaitable[int]], rows: Sequence[RowT], report: CopyReport
) -> int:
    try:
        return await restore(rows)
    except (InvalidInputError, ThreadNotFoundError):
        copied = 0
    for row in rows:  # all but those that are to blame
        try:
            copied += await restore([row])
        except (InvalidInputError, ThreadNotFoundError) as exc:
            report.differ(f"{_name_of(row)} was refused by the target: {exc}")
    return copied


def _compare(rows: Sequence[RowT], there: dict[str, RowT], report: CopyReport) -> None:
    for row in rows:
        copy = there.get(_id_of(row))
        if copy is None:
            report.differ(f"{_name_of(row)} is missing at the target.")
        elif copy != row:
            columns = [name for name, value in row.items() if cast("dict[str, Any]", copy).get(name) != value]
            report.differ(
                f"{_name_of(row)} differs at the target in {', '.join(columns)}, and was left as it is there."
            )


def _id_of(row: ThreadRow | RunRow) -> str:
    run_id = row.get("run_id")
    return str(row["thread_id"] if run_id is None else run_id)


def _name_of(row: ThreadRow | RunRow) -> str:
    return f"The run {_id_of(row)}" if "run_id" in row else f"The thread {_id_of(row)!r}"
