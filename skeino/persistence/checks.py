"""What `skeino doctor` finds out: its checks, and those that need no database."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, NamedTuple

from skeino.errors import SkeinoError
from skeino.persistence.deserializing import VARIABLE, is_strict
from skeino.persistence.versions import SchemaState

Outcome = Literal["ok", "warning", "failure", "skipped"]


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    outcome: Outcome
    found: str
    """What is so, in a sentence."""
    advice: str | None = None
    """What to do about it."""


Examine = Callable[[], Awaitable[Check]]

FLOORS: Final[Mapping[str, str]] = {
    "langgraph": "1.0.10",
    "langgraph-checkpoint": "4.1.1",
    "langgraph-checkpoint-sqlite": "3.0.1",
    "langgraph-checkpoint-mongodb": "0.5.1",
    "starlette": "1.3.1",
}
"""The first release of each without a known advisory."""

SKEW: Final = 2.0
"""Seconds between two clocks from which on times in rows mislead."""

SAMPLE: Final = 10_000
"""Threads that are looked at for orphans."""

SHOWN: Final = 3
"""Orphans that are named."""


async def checked(examinations: Mapping[str, Examine]) -> AsyncIterator[Check]:
    """The examinations one after the other; what one of them raises is its failure."""
    for name, examine in examinations.items():
        try:
            check = await examine()
        except SkeinoError as exc:
            check = Check(name, "failure", str(exc))
        yield check._replace(name=name)


def unreachable(exc: SkeinoError, others: Sequence[str]) -> list[Check]:
    """The checks of a database that cannot be reached."""
    return [
        Check("reachable", "failure", str(exc), "Correct the URI, or start the server."),
        *(Check(name, "skipped", "The database cannot be reached.") for name in others),
    ]


def of_versions(installed: Callable[[str], str] = version) -> Check:
    """Whether what is installed has known advisories."""
    old: list[str] = []
    for package, floor in FLOORS.items():
        try:
            found = installed(package)
        except PackageNotFoundError:
            continue
        if _release(found) < _release(floor):
            old.append(f"{package} {found} (fixed in {floor})")
    if not old:
        return Check("versions", "ok", "No installed package has an advisory that was known when skeino was released.")
    advice = "Upgrade: pip install -U " + " ".join(f"'{one.split()[0]}>={FLOORS[one.split()[0]]}'" for one in old) + "."
    return Check("versions", "failure", f"There are advisories for {', '.join(old)}.", advice)


def of_strictness() -> Check:
    """Whether LangGraph reads checkpoints strictly."""
    if is_strict():
        return Check("strict msgpack", "ok", "A checkpoint may name safe types only.")
    return Check(
        "strict msgpack",
        "warning",
        "Whoever can write to the database can make this process import what a checkpoint names.",
        f"Set {VARIABLE}=true in the application's environment.",
    )


def of_schema(state: SchemaState) -> Check:
    """Whether the application finds all that it needs."""
    problem = state.refused or state.lacking
    if problem is None:
        return Check("schema", "ok", f"The schema has version {state.version}, and all is there.")
    advice = "Install a newer skeino-asgi." if state.refused else "Run python -m skeino schema --apply."
    return Check("schema", "failure", problem, advice)


def of_connections(wanted: int, workers: int, available: int, known: str) -> Check:
    """Whether the server has connections for all workers.

    Args:
        wanted: connections of one process, at the most.
        workers: processes, on all machines.
        available: what the server has for them.
        known: how that number comes about, for people.
    """
    total = wanted * workers
    sentence = f"{workers} × {wanted} connections are {total}, of {available} ({known})"
    less = "Lower pool_max_size or the number of workers, put a pooler between, or raise the server's limit."
    if total > available:
        return Check("connections", "failure", f"{sentence}: they do not suffice.", less)
    if 2 * total > available:
        sentence += ": while a deployment replaces all processes at once, twice as many are too many."
        return Check("connections", "warning", sentence, less)
    return Check("connections", "ok", f"{sentence}.")


def of_orphans(orphans: Sequence[str], looked_at: int) -> Check:
    """What was found of state whose thread has no row.

    Args:
        orphans: the threads' ids.
        looked_at: how many threads that have state.
    """
    seen = f"{looked_at} threads that have state" + (", and there are more" if looked_at >= SAMPLE else "")
    if not orphans:
        return Check("orphans", "ok", f"Of {seen}, each has its row; a thread's row without state is as it should be.")
    named = ", ".join(repr(one) for one in orphans[:SHOWN]) + (" …" if len(orphans) > SHOWN else "")
    return Check(
        "orphans",
        "warning",
        f"Of {seen}, {len(orphans)} have no row: {named}.",
        "They were written without skeino, or a deletion was cut short: give each a row (create_thread), or delete it "
        "(persistence.delete_thread).",
    )


def of_workers(living: int, without_lease: int, lost: int, lease_seconds: float) -> Check:
    """Whether active runs have a process that works on them, as far as leases tell.

    Args:
        living: processes whose lease has not run out.
        without_lease: active runs of workers that have no lease.
        lost: active runs of workers whose lease has run out or is lost.
        lease_seconds: as set.
    """
    sentence = f"{living} processes hold a lease"
    if without_lease:
        return Check(
            "workers",
            "warning",
            f"{sentence}; {without_lease} active runs belong to workers that have none, so nobody will end them.",
            "If those processes are gone, end their runs: metadata_store.interrupt_runs(worker_id, error).",
        )
    if lost:
        return Check(
            "workers",
            "warning",
            f"{sentence}; {lost} active runs belong to processes that were not heard of in time.",
            "Any process that tracks runs ends them within two leases: start one, if none runs.",
        )
    if not lease_seconds:
        return Check(
            "workers", "warning", "lease_seconds is 0: the runs of a process that dies stay active.", "Set it to 30."
        )
    return Check("workers", "ok", f"{sentence}, and each active run has its process.")


def of_clock(server: datetime, before: datetime, after: datetime) -> Check:
    """How far the database's clock is from this machine's.

    Args:
        server: what it said.
        before: when it was asked, by this machine's clock.
        after: when the answer was there.
    """
    skew = max((before - server).total_seconds(), (server - after).total_seconds(), 0.0)
    if skew <= SKEW:
        return Check("clock", "ok", "This machine's clock and the database's agree.")
    which = "behind" if server > after else "ahead of"
    return Check(
        "clock",
        "warning",
        f"This machine's clock is {skew:.0f} s {which} the database's: times in rows mislead, and threads expire early "
        "or late.",
        "Let both machines take the time from NTP.",
    )


def now() -> datetime:
    """By this machine's clock."""
    return datetime.now(UTC)


def _release(text: str) -> tuple[tuple[int, ...], bool]:
    """Sorts as versions do (PEP 440), as far as floors need it: a pre-release comes before its release."""
    found = re.match(r"\d+(\.\d+)*", text)
    numbers = tuple(int(part) for part in found[0].split(".")) if found else (0,)
    rest = text[found.end() :] if found else ""
    return (*numbers, 0, 0, 0)[:4], not re.match(r"\.?(a|b|rc|dev)", rest)
