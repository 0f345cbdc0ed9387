"""`python -m skeino schema`, as people and programs run it."""

import json
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from skeino.persistence import open_persistence
from skeino.testing import finished
from tests.contract.test_postgres_server import role_without_create
from tests.contract.test_schema import without_setup
from tests.servers import postgres
from tests.startup.command_line import ran, settings_of, uri

__all__ = ["uri"]

run = partial(ran, "schema")


def carry_out(script: str, uri: str, folder: Path) -> str:
    """Run a printed script as its first lines say; returns what went wrong."""
    file = folder / "schema.sql"
    file.write_text(script)
    if uri.startswith("postgresql"):
        command = [str(_psql()), "--quiet", "--set=ON_ERROR_STOP=1", f"--file={file}", uri]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr
    if uri.startswith("mongodb"):
        return _carry_out_commands(script, uri)
    path = uri.removeprefix("sqlite:///")
    if shell := shutil.which("sqlite3"):
        with file.open() as commands:
            done = subprocess.run([shell, "-bail", path], stdin=commands, capture_output=True, text=True, check=False)
        return done.stderr
    with closing(sqlite3.connect(path)) as connection:
        try:
            connection.executescript(script)
        except sqlite3.Error as exc:
            return str(exc)
    return ""


def _psql() -> Path:
    found = postgres.find_postgres(local=True).binaries
    assert found is not None
    psql = found / "psql"
    return psql if psql.exists() else Path(shutil.which("psql") or psql)


def _carry_out_commands(script: str, uri: str) -> str:
    """As mongosh would: what it prints is JSON in calls, and two constants."""
    found = re.search(r'checkpoints = db.getSiblingDB\((".+?")\), metadata = db.getSiblingDB\((".+?")\);', script)
    assert found is not None
    names = {"checkpoints": json.loads(found[1]), "metadata": json.loads(found[2])}
    with MongoClient[Any](uri) as client:
        for line in script.splitlines():
            if line and not line.startswith(("//", "const ")):
                call = re.fullmatch(r"(checkpoints|metadata)\.runCommand\((.+)\);", line)
                assert call is not None, line
                answer = client[names[call[1]]].command(json.loads(call[2]))
                assert not answer.get("writeErrors"), answer
    return ""


async def test_the_printed_script_makes_what_a_start_without_set_up_accepts(uri: str, tmp_path: Path) -> None:
    printed = run("--print", "--uri", uri)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert carry_out(printed.stdout, uri, tmp_path) == ""
    async with open_persistence(without_setup(settings_of(uri))) as persistence:
        await finished(persistence.metadata_store, "t")
        assert await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "t"}}) is None
    assert run("--uri", uri).returncode == 0

    again = carry_out(printed.stdout, uri, tmp_path)  # of a file it says that it is for a new one
    assert ("already exists" in again) if uri.startswith("sqlite") else again == ""
    async with open_persistence(without_setup(settings_of(uri))) as persistence:
        assert len(await persistence.metadata_store.search_runs()) == 1


async def test_the_printed_script_makes_the_same_as_a_start(uri: str, tmp_path: Path) -> None:
    assert carry_out(run("--print", "--uri", uri).stdout, uri, tmp_path) == ""
    printed = dump(uri)
    assert run("--apply", "--uri", uri).returncode == 0
    assert dump(uri) == printed
    empty(uri)
    assert run("--apply", "--uri", uri).returncode == 0
    assert dump(uri) == printed


def dump(uri: str) -> Any:
    """What the schema is, and the versions that are recorded."""
    if uri.startswith("sqlite"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as file:
            found = file.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
            spaceless = [(name, "".join(statement.split())) for name, statement in found]
            return spaceless, file.execute("SELECT * FROM app_schema").fetchall()
    if uri.startswith("mongodb"):
        with MongoClient[Any](uri) as client:
            database = client.get_default_database()
            collections = {name: database[name].index_information() for name in database.list_collection_names()}
            return collections, [*database["app_schema"].find({}, {"_id": 0})]
    with psycopg.connect(uri) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2"
        ).fetchall()
        indexes = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        ).fetchall()
        versions = connection.execute("SELECT * FROM app_schema").fetchall()
        return (
            columns,
            indexes,
            versions,
            connection.execute("SELECT v FROM checkpoint_migrations ORDER BY 1").fetchall(),
        )


def empty(uri: str) -> None:
    if uri.startswith("sqlite"):
        for suffix in ("", "-wal", "-shm"):
            Path(uri.removeprefix("sqlite:///") + suffix).unlink(missing_ok=True)
    elif uri.startswith("mongodb"):
        with MongoClient[Any](uri) as client:
            client.drop_database(client.get_default_database().name)
    else:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def test_it_says_what_is_missing_and_makes_it(uri: str) -> None:
    before = run("--uri", uri)
    assert before.returncode == 1
    assert "run python -m skeino schema --apply" in before.stdout
    told = json.loads(run("--json", "--uri", uri).stdout)
    assert (told["version"], told["known"], told["ready"]) == (0, 1, False)
    assert {"app_schema", "app_threads", "app_runs", "checkpoints"} <= {*told["missing"]}

    made = run("--apply", "--uri", uri)
    assert (made.returncode, made.stdout) == (0, "The schema has version 1 now.\n")
    assert run("--apply", SCHEMA_URI=uri).stdout == "Nothing to do: the schema has version 1.\n"
    after = run("--json", SKEINO_CHECKPOINTER_SCHEME=uri.partition("://")[0], SKEINO_CHECKPOINTER_URI=uri)
    assert (after.returncode, after.stderr) == (0, "")
    assert json.loads(after.stdout) == {
        "version": 1,
        "compatible_from": 1,
        "known": 1,
        "missing": [],
        "ready": True,
        "problem": None,
    }
    applied = json.loads(run("--apply", "--json", "--uri", uri).stdout)
    assert (applied["from_version"], applied["version"]) == (1, 1)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert run("--uri", f"sqlite:///{tmp_path}/skeino.db").returncode == 1
    assert [*tmp_path.iterdir()] == []


def test_the_settings_options_do_not_forbid_it(tmp_path: Path) -> None:
    variables = {
        "SKEINO_CHECKPOINTER_SCHEME": "sqlite",
        "SKEINO_CHECKPOINTER_URI": str(tmp_path / "skeino.db"),
        "SKEINO_CHECKPOINTER_OPTIONS": '{"setup_schema": false}',
    }
    assert run("--apply", **variables).returncode == 0
    assert run(**variables).returncode == 0


def test_a_script_can_be_printed_by_the_scheme_alone() -> None:
    for scheme, begins in (("postgres", "-- The"), ("sqlite", "-- The"), ("mongodb", "// The")):
        printed = run("--print", SKEINO_CHECKPOINTER_SCHEME=scheme)
        assert printed.returncode == 0
        assert printed.stdout.startswith(begins)
        assert (
            json.loads(run("--print", "--json", SKEINO_CHECKPOINTER_SCHEME=scheme).stdout)["script"] == printed.stdout
        )
        if scheme == "mongodb":  # whose databases have these names unless a URI says otherwise
            names = 'checkpoints = db.getSiblingDB("checkpointing_db"), metadata = db.getSiblingDB("skeino");'
            assert names in printed.stdout


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    quiet = run("--apply", "--uri", f"sqlite:///{tmp_path}/a.db")
    shown = run("--apply", "--uri", f"sqlite:///{tmp_path}/b.db", FORCE_COLOR="1")
    assert quiet.stderr == ""
    assert "SQLite: making schema version 1." in shown.stderr
    assert shown.stdout == quiet.stdout


@pytest.mark.postgres
def test_a_role_that_may_not_create_is_status_1_in_a_sentence(postgres_dsn: str) -> None:
    with role_without_create(postgres_dsn) as dsn:
        refused = run("--apply", "--uri", dsn)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("The role 'modest' may not CREATE tables in the database")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--print", "--apply", "--uri", "sqlite:///a.db"], "--print and --apply exclude each other"),
        (["postgresql://u:s3cret@h/x"], "takes options only"),
        (["--uri", "a.db"], "--uri must begin with its scheme"),
        (["--uri", "redis://u:s3cret@h/0"], "--uri must be a URI of sqlite, postgres or mongodb"),
        ([], "The scheme 'memory' has no schema to set up, as it keeps nothing beyond its process: set SKEINO_"),
    ],
)
def test_what_cannot_be_meant_is_status_2_in_a_sentence_without_a_secret(arguments: list[str], told: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "s3cret" not in refused.stdout + refused.stderr


@pytest.mark.parametrize("scheme", ["redis", "archive"])
def test_a_scheme_without_a_schema_says_so(scheme: str) -> None:
    refused = run(SKEINO_CHECKPOINTER_SCHEME=scheme, SKEINO_CHECKPOINTER_URI="x://y")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"The scheme '{scheme}' has no schema to set up" in refused.stderr


def test_help_names_the_options_and_statuses() -> None:
    shown = run("--help").stdout
    for told in ("--print", "--apply", "--uri", "SCHEMA_URI", "--json", "Exit status"):
        assert told in shown
