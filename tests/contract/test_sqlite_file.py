"""What is particular to a SQLite file: who may read it, who may lock it, and what is no file of ours."""

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino.errors import ConfigurationError, SkeinoError, StoreError, StoreUnavailableError, ThreadNotFoundError
from skeino.persistence import SqliteMetadataStore, open_persistence
from skeino.persistence.queries import thread_query
from skeino.persistence.sqlite import statements
from skeino.runs import new_id
from skeino.testing import ending, everything, finished, started


def settings_for(uri: object, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(uri), checkpointer_options=options)


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, locked for writing as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path)) as persistence:
        await finished(persistence.metadata_store, "t")
        assert sorted(os.listdir(tmp_path)) == ["skeino.db", "skeino.db-shm", "skeino.db-wal"]
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)} == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_journal_is_a_write_ahead_log_and_a_commit_is_synchronous(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path)) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, SqliteMetadataStore)

        def pragmas(connection: sqlite3.Connection) -> list[Any]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

        assert await store._database.write(pragmas) == ["wal", 2, 1]
        assert [tuple(row) for row in await store._database.read("PRAGMA query_only")] == [(1,)]


@pytest.mark.parametrize("few", [0, 1, 3, 1000])
async def test_a_search_by_metadata_finds_the_same_whether_few_have_it_or_many(
    tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "FEW", few)
    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        store = persistence.metadata_store
        for number in range(12):
            of_it: Any = {"kind": "chat" if number % 2 else "job", "n": number // 2, "odd": bool(number % 2)}
            await store.create_thread(f"t{number:02}", metadata=of_it)

        async def found(**search: Any) -> list[str]:
            rows = await store.search_threads(sort_by="thread_id", sort_order="asc", **search)
            return [row["thread_id"] for row in rows]

        assert await found(metadata={"kind": "chat"}) == [f"t{number:02}" for number in range(1, 12, 2)]
        assert await found(metadata={"kind": "chat"}, limit=2, offset=1) == ["t03", "t05"]
        assert await found(metadata={"kind": "job", "n": 3}) == ["t06"]
        assert await found(metadata={"n": 1}) == ["t02", "t03"]
        assert await found(metadata={"odd": True, "n": 1}) == ["t03"]
        assert await found(metadata={"odd": 1}) == []
        assert await found(metadata={"kind": "chat"}, ids=["t00", "t01", "t11"]) == ["t01", "t11"]
        assert await found(metadata={"kind": "none"}) == []


async def test_a_search_by_metadata_that_few_rows_have_reads_few_rows(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, SqliteMetadataStore)

        def fill(connection: sqlite3.Connection) -> None:
            connection.execute(
                """
                WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)
                INSERT INTO app_threads (thread_id, status, metadata, config, created_at, updated_at)
                SELECT 't' || n, 'idle', json_object('n', n), '{}', '2026', '2026' FROM numbers
                """
            ).close()

        await store._database.write(fill)
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        def read(connection: sqlite3.Connection) -> int:
            connection.set_progress_handler(count, 100)  # instructions of SQLite's machine
            try:
                query = statements.with_few_ids(
                    connection, thread_query({"metadata": {"n": 7}}), table="app_threads", id_column="thread_id"
                )
                clauses, values = statements.search_clauses(query, id_column="thread_id", busy=statements.IS_BUSY)
                return len(connection.execute(f"{statements.SELECT_THREADS} {clauses}", values).fetchall())
            finally:
                connection.set_progress_handler(None, 0)

        assert await store._database.reading(read) == 1
        assert steps < 20, "it has gone through the table"


async def test_a_run_without_its_thread_is_refused_by_the_file_itself(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, SqliteMetadataStore)
        run_id = await started(store)

        def orphan(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE app_runs SET thread_id = 'nowhere' WHERE run_id = ?", (run_id,))

        with pytest.raises(StoreError, match="SQLITE_CONSTRAINT"):
            await store._database.write(orphan)
        await finished(store, "t")


async def test_a_cancelled_writer_leaves_no_transaction_open(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path)) as persistence:
        store = persistence.metadata_store
        for _ in range(10):
            tasks = [asyncio.create_task(started(store, "t")) for _ in range(5)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await store.search_runs()
        await finished(store, "t")  # the writer thread has done all that was asked of it before
        begin = time.monotonic()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("COMMIT")
        assert time.monotonic() - begin < 1


async def test_a_lock_of_another_process_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path, busy_timeout=20)) as persistence:
        with locked(path) as other:
            writing = asyncio.create_task(started(persistence.metadata_store, "t"))
            assert await persistence.metadata_store.search_runs() == [], "a reader waits for nobody"
            assert not writing.done()
            other.execute("COMMIT")
            await writing
        assert len(await persistence.metadata_store.search_runs()) == 1


async def test_a_lock_that_lasts_is_a_typed_error_in_time(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path, busy_timeout=0.5)) as persistence:
        with locked(path):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"skeino\.db.*SQLITE_BUSY"):
                await started(persistence.metadata_store, "t")
            assert 0.4 < time.monotonic() - begin < 3
        assert await everything(persistence.metadata_store) == ([], [])
        await finished(persistence.metadata_store, "t")


async def test_many_who_wait_for_a_lock_wait_no_longer_than_one(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path, busy_timeout=0.5)) as persistence:
        with locked(path):
            begin = time.monotonic()
            results = await asyncio.gather(
                *(started(persistence.metadata_store) for _ in range(10)), return_exceptions=True
            )
            assert all(isinstance(result, StoreUnavailableError) for result in results)
            assert time.monotonic() - begin < 3, "the waits of one writer thread add up"
        await finished(persistence.metadata_store, "t")


async def test_who_comes_late_waits_as_long_as_who_came_first(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path, busy_timeout=2.0)) as persistence:

        async def write(seconds: float) -> None:
            await asyncio.sleep(seconds)
            await started(persistence.metadata_store)

        with locked(path) as other:
            first, second, late = (asyncio.create_task(write(seconds)) for seconds in (0.0, 0.2, 1.2))
            await asyncio.wait([first, second])  # and the second waits in one batch with the late one
            assert not late.done(), "it was told to wait for 2 s, and has waited for one"
            other.execute("ROLLBACK")
            await late
        for one in (first, second):
            with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
                await one


async def test_a_full_disk_is_a_typed_error_and_the_file_is_used_again(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, SqliteMetadataStore)
        kept = await started(store, "t")

        def no_more_pages(connection: sqlite3.Connection) -> int:
            pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            return pages

        await store._database.write(no_more_pages)
        with pytest.raises(StoreUnavailableError, match="SQLITE_FULL") as failed:
            await started(store, "t", metadata={"much": 50_000 * "x"})
        assert not failed.value.maybe_done
        with pytest.raises(StoreUnavailableError, match="SQLITE_FULL"):
            await asyncio.gather(*(started(store, "t", metadata={"much": 10_000 * "x"}) for _ in range(3)))
        assert await store.finish_run(ending(kept)), "what takes no more room is written"
        await store._database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").close())
        await finished(store, "t")


async def test_a_file_that_has_all_is_opened_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path)):
        pass
    with locked(path):
        async with open_persistence(settings_for(path, busy_timeout=0.5)) as persistence:
            assert await persistence.metadata_store.search_runs() == []


async def test_setting_up_a_locked_file_fails_in_time(tmp_path: Path) -> None:
    path = tmp_path / "skeino.db"
    async with open_persistence(settings_for(path)):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE app_runs; DROP TABLE app_threads; DROP TABLE app_schema")
    with locked(path):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
            async with open_persistence(settings_for(path, busy_timeout=0.5)):
                pass
        assert time.monotonic() - begin < 4


@pytest.mark.parametrize("uri", ["sqlite:///{}", "sqlite3:///{}", "SQLite:///{}", "{}"])
async def test_a_file_is_named_by_path_or_by_uri(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "a b%.db"
    named = str(path).replace("%", "%25").replace(" ", "%20") if "://" in uri else str(path)
    async with open_persistence(settings_for(uri.format(named))):
        pass
    assert path.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "needs checkpointer_uri.*skeino.db"),
        ("   ", "needs checkpointer_uri"),
        (":memory:", "checkpointer_scheme='memory'"),
        ("sqlite:///x.db?mode=ro", r"no '\?' parameters"),
        ("sqlite:///:memory:", "checkpointer_scheme='memory'"),
        ("file:skeino.db?mode=memory", r"no '\?' parameters"),
        ("file:skeino.db", "not one that begins with 'file:'"),
        ("{folder}/x.db?mode=ro", r"no '\?' parameters"),
        ("sqlite+aiosqlite:///x.db", r"begins with 'sqlite\+aiosqlite'"),
        ("sqlite://skeino.db", "three slashes"),
        ("sqlite:///", "plain file path"),
        ("postgresql://user:hunter2@host/db", "begins with 'postgresql'"),
        ("user:hunter2@host://db", "needs a file"),
        ("user:hunter2@host/db", "looks like a server's connection string"),
        ("host=db password=hunter2", "looks like a server's connection string"),
        ("{folder}", "names the folder"),
        ("{folder}/missing/skeino.db", "does not exist: make it first"),
        ("{folder}/file/skeino.db", "file of checkpointer_uri does not exist"),
    ],
)
async def test_what_is_no_file_of_ours_is_refused_at_start_up(tmp_path: Path, uri: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=message) as refused:
        async with open_persistence(settings_for(uri.format(folder=tmp_path))):
            pass
    assert "hunter2" not in str(refused.value)
    assert os.listdir(tmp_path) == ["file"]


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and they are no database\n" * 100)
    with pytest.raises(SkeinoError, match=r"notes\.txt.*NOTADB"):
        async with open_persistence(settings_for(path)):
            pass
    assert path.read_text().startswith("these are my notes")


async def test_a_store_that_was_closed_says_so(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        await finished(persistence.metadata_store, "t")
    with pytest.raises(StoreUnavailableError, match="closed"):
        await persistence.metadata_store.search_runs()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await persistence.metadata_store.start_run(new_id(), worker_id="w")
    with pytest.raises(StoreUnavailableError, match="closed"):
        await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "t"}})


@pytest.mark.parametrize("half_way", [False, True])
async def test_one_that_fails_among_others_is_undone_alone(tmp_path: Path, half_way: bool) -> None:
    """Those beside it are done once if it had changed nothing, and else once more; either way they are there."""
    calls: list[int] = []

    def kept(number: int) -> Any:
        def work(connection: sqlite3.Connection) -> int:
            calls.append(number)
            connection.execute("INSERT INTO app_threads_metadata VALUES (?, 'n', 1)", (f"t{number}",))
            return number

        return work

    def failing(connection: sqlite3.Connection) -> None:
        if half_way:
            connection.execute("INSERT INTO app_threads_metadata VALUES ('t0', 'n', 1)")
        raise ThreadNotFoundError("There is no such thread.")

    async with open_persistence(settings_for(tmp_path / "skeino.db")) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, SqliteMetadataStore)
        for number in range(4):
            await store.create_thread(f"t{number}")
        database = store._database
        waits = [database.enqueue(kept(1)), database.enqueue(failing), database.enqueue(kept(2))]
        answers = await asyncio.gather(*waits, return_exceptions=True)
        rows = await database.read("SELECT thread_id FROM app_threads_metadata ORDER BY thread_id")
    assert (answers[0], type(answers[1]), answers[2]) == (1, ThreadNotFoundError, 2)
    assert [row[0] for row in rows] == ["t1", "t2"]
    assert calls == ([1, 1, 2] if half_way else [1, 2])
