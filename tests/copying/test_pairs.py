"""From each scheme to each: all arrives, nothing changes at the source, and every thread goes on."""

import sqlite3
from contextlib import closing

import psycopg
import pytest

from skeino import SkeinoSettings
from skeino.copying import copy_persistence
from skeino.persistence import open_persistence
from tests.copying.conftest import Places
from tests.copying.house import THREADS, all_rows, all_state, all_writes, application, dump, furnish, go_on, history_of

SERVERS = {"sqlite": [], "postgres": [pytest.mark.postgres], "mongodb": [pytest.mark.mongodb]}
PAIRS = [
    pytest.param(source, target, marks=[*SERVERS[source], *SERVERS[target]], id=f"{source} to {target}")
    for source in SERVERS
    for target in SERVERS
]


@pytest.mark.parametrize(("source_scheme", "target_scheme"), PAIRS)
async def test_everything_arrives_and_every_thread_goes_on(
    place: Places, source_scheme: str, target_scheme: str
) -> None:
    source, target = place(source_scheme), place(target_scheme)
    with application():
        await furnish(source)
        rows = await all_rows(source)
        async with open_persistence(source) as opened:
            state = await all_state(opened)
            history = {thread_id: await history_of(thread_id, opened) for thread_id in THREADS}
    before = dump(source)

    report = await copy_persistence(source, target)  # where the application's classes are not known

    assert report.verified, report.differences
    assert (report.threads.found, report.threads.copied) == (8, 8)
    assert (report.runs.found, report.runs.copied) == (455 + 15, 455 + 15)
    assert report.active_runs == 2
    assert report.threads_with_state == len(THREADS)
    assert report.checkpoints.found == report.checkpoints.copied == len(state)
    assert report.pending_writes.found == report.pending_writes.copied > 0
    assert dump(source) == before
    assert await all_rows(source) == rows == await all_rows(target)
    with application():
        async with open_persistence(source) as here, open_persistence(target) as there:
            assert await all_state(here) == state
            assert await all_state(there) == state
            assert await all_writes(there) == await all_writes(here)
            for thread_id in THREADS:
                assert await history_of(thread_id, there) == history[thread_id]
                assert await go_on(thread_id, there) == await go_on(thread_id, here), thread_id


@pytest.mark.postgres
async def test_from_postgres_to_postgres_every_table_is_the_same(place: Places) -> None:
    source, target = place("postgres"), place("postgres")
    with application():
        await furnish(source)

    assert (await copy_persistence(source, target)).verified

    forget_fences(source, target)
    before, after = tables(source), tables(target)
    marker = (
        '""items"": true'  # of a snapshot; reading shows it on each checkpoint with its version, so a copy has it there
    )
    assert any(marker in row for row in before["checkpoints"])
    assert {row for row in before["checkpoints"] if marker in row} <= {*after["checkpoints"]}
    assert [row.replace(marker, "") for row in after.pop("checkpoints")] == [
        row.replace(marker, "") for row in before.pop("checkpoints")
    ]
    assert after == before


async def test_from_sqlite_to_sqlite_every_table_is_the_same(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    with application():
        await furnish(source)

    assert (await copy_persistence(source, target)).verified

    forget_fences(source, target)
    assert sorted(lines(target)) == sorted(lines(source))


def forget_fences(*places: SkeinoSettings) -> None:
    """They begin with the time at which a thread's row is made, and mean nothing to another database."""
    statement = "UPDATE app_threads SET fence = 0"
    for one in places:
        assert one.checkpointer_uri is not None
        if one.checkpointer_scheme == "sqlite":
            with closing(sqlite3.connect(one.checkpointer_uri.removeprefix("sqlite:///"))) as file:
                file.execute(statement)
                file.commit()
        else:
            with psycopg.connect(one.checkpointer_uri) as connection:
                connection.execute(statement)


def tables(settings: SkeinoSettings) -> dict[str, list[str]]:
    """The rows of a PostgreSQL database."""
    dumped = dump(settings)
    assert isinstance(dumped, dict)
    return {table: [text for (text,) in rows] for table, rows in dumped.items()}


def lines(settings: SkeinoSettings) -> list[str]:
    """The rows of a SQLite file."""
    dumped = dump(settings)
    assert isinstance(dumped, list)
    return dumped
