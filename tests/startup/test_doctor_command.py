"""`python -m skeino doctor`: what it finds out about living databases, and how it says so."""

import json
import re
import sqlite3
import stat
import sys
import tomllib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from skeino import ConfigurationError, SkeinoSettings
from skeino.persistence import checks, open_persistence
from skeino.persistence.checks import Check
from skeino.persistence.doctor import examine
from skeino.persistence.mongodb import doctor as mongodb_doctor
from skeino.testing import WORKER, started
from skeino.testing.leases import keeping
from tests.contract.test_postgres_server import role_without_create
from tests.contract.test_rights import guarded
from tests.savers.graphs import config_of, plain, said
from tests.servers import pgbouncer
from tests.servers.mongodb import LocalMongoServer
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.startup.command_line import ROOT, ran, settings_of, uri

__all__ = ["guarded", "uri"]

run = partial(ran, "doctor")


async def examined(uri: str, *, workers: int = 1, lease_seconds: float = 30.0, **options: Any) -> dict[str, Check]:
    """The checks of a database by their names, each of which is there once, and without a secret."""
    settings = settings_of(uri, checkpointer_options=options, lease_seconds=lease_seconds)
    found = [check async for check in examine(settings, workers)]
    assert len({check.name for check in found}) == len(found)
    assert "s3cret" not in repr(found)
    return {check.name: check for check in found}


async def made(uri: str) -> None:
    async with open_persistence(settings_of(uri)):
        pass


def outcomes(found: dict[str, Check], *outcome: str) -> set[str]:
    return {name for name, check in found.items() if check.outcome in outcome}


# ── On every backend ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_healthy_database_is_well_and_nothing_is_written(uri: str) -> None:
    async with open_persistence(settings_of(uri)) as persistence:
        graph = plain(persistence.checkpointer)
        for thread_id in ("t", "u"):
            await persistence.metadata_store.create_thread(thread_id)
            await graph.ainvoke(said("one"), config_of(thread_id))
    found = await examined(uri)
    assert outcomes(found, "failure") == set()
    # The tests' server of MongoDB lets everybody in.
    assert outcomes(found, "warning") - {"strict msgpack"} <= ({"rights"} if uri.startswith("mongodb") else set())
    assert "Of 2 threads that have state, each has its row" in found["orphans"].found
    assert set(found) == {"versions", "strict msgpack", "reachable", *ALL_CHECKS}


ALL_CHECKS = ("server", "schema", "rights", "pooler", "connections", "orphans", "workers", "clock")


async def test_an_empty_database_lacks_its_schema_and_stays_empty(uri: str) -> None:
    found = await examined(uri)
    if uri.startswith("sqlite"):
        assert found["reachable"].outcome == "warning"
        assert (await examined(uri))["reachable"] == found["reachable"]
        return
    assert found["schema"].outcome == "failure"
    assert "python -m skeino schema --apply" in str(found["schema"].advice)
    assert outcomes(found, "skipped") >= {"orphans", "workers"}
    assert (await examined(uri))["schema"] == found["schema"]
    await made(uri)
    assert (await examined(uri))["schema"].outcome == "ok"


async def test_state_without_a_row_is_found_and_named(uri: str) -> None:
    async with open_persistence(settings_of(uri)) as persistence:
        graph = plain(persistence.checkpointer)
        for thread_id in ("[red]orphan", "with a row", "another"):
            await graph.ainvoke(said("one"), config_of(thread_id))
        await persistence.metadata_store.create_thread("with a row")
        await persistence.metadata_store.create_thread("without state")
    found = await examined(uri)
    assert found["orphans"].outcome == "warning"
    assert "Of 3 threads that have state, 2 have no row: '[red]orphan', 'another'." in found["orphans"].found
    assert "'[red]orphan'" in run("--uri", uri).stdout, "it is no markup"


async def test_active_runs_whose_worker_has_no_lease_are_found(uri: str) -> None:
    async with open_persistence(settings_of(uri)) as persistence:
        store = persistence.metadata_store
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, "lives", 60)
            await started(store, "t", worker_id="lives")
            assert (await examined(uri))["workers"] == (
                "workers",
                "ok",
                "1 processes hold a lease, and each active run has its process.",
                None,
            )
            await started(store, "t", worker_id=WORKER)
            await keeper.lose(WORKER)
            lost = (await examined(uri))["workers"]
            assert lost.outcome == "warning"
            assert "1 active runs belong to processes that were not heard of" in lost.found
            for _ in range(2):
                await started(store, None, worker_id="a script")
            none = (await examined(uri))["workers"]
            assert none.outcome == "warning"
            assert "1 processes hold a lease; 2 active runs belong to workers that have none" in none.found


async def test_without_leases_it_says_what_that_means(uri: str) -> None:
    await made(uri)
    assert (await examined(uri, lease_seconds=0))["workers"].outcome == "warning"


async def test_a_clock_that_is_wrong_is_noticed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await made(uri)
    for name in ("postgres", "mongodb"):
        module = sys.modules[f"skeino.persistence.{name}.doctor"]
        monkeypatch.setattr(module, "now", lambda: datetime.now(UTC) + timedelta(seconds=100))
    clock = (await examined(uri))["clock"]
    if uri.startswith("sqlite"):
        assert clock.outcome == "skipped"
    else:
        assert clock.outcome == "warning"
        assert re.search(r"is (99|100) s ahead of the database's", clock.found)


# ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.postgres
async def test_a_role_without_rights_is_told_the_grants_that_it_needs(postgres_dsn: str) -> None:
    with role_without_create(postgres_dsn) as dsn:
        found = await examined(dsn)
        assert (found["rights"].outcome, found["schema"].outcome) == ("failure", "failure")
        assert "may make none" in found["rights"].found
        await made(postgres_dsn)
        lacks = (await examined(dsn))["schema"]
        assert lacks.outcome == "failure", "it may not even read the version"
        with psycopg.connect(postgres_dsn, autocommit=True) as owner:
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO modest")
            rights = (await examined(dsn))["rights"]
            assert rights.outcome == "failure"
            assert "INSERT on checkpoints, checkpoint_blobs" in rights.found
            owner.execute(str(rights.advice).removeprefix("As the tables' owner: ").encode())
        found = await examined(dsn)
        assert outcomes(found, "failure") == set()


@pytest.mark.postgres
async def test_a_half_made_schema_is_told(postgres_dsn: str) -> None:
    await made(postgres_dsn)
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        owner.execute("DELETE FROM checkpoint_migrations WHERE v > 3")
    half = (await examined(postgres_dsn))["schema"]
    assert half.outcome == "failure"
    assert "LangGraph's migrations 5 to" in half.found
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        owner.execute("DROP TABLE app_runs")
    found = await examined(postgres_dsn)
    assert "app_runs" in found["schema"].found
    assert outcomes(found, "skipped") == {"orphans", "workers"}


@pytest.mark.postgres
async def test_workers_that_the_server_has_no_connections_for_are_counted(postgres_dsn: str) -> None:
    await made(postgres_dsn)
    with psycopg.connect(postgres_dsn) as owner:
        row = owner.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        ).fetchone()
    assert row is not None
    room = row[0] // 4
    assert (await examined(postgres_dsn, pool_max_size=8, workers=1))["connections"].outcome == "ok"
    assert (await examined(postgres_dsn, pool_max_size=room * 3, workers=1))["connections"].outcome == "warning"
    too_many = (await examined(postgres_dsn, pool_max_size=8, workers=1000))["connections"]
    assert too_many.outcome == "failure"
    assert "1000 × 10 connections are 10000, of" in too_many.found
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        owner.execute("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || "
            "' CONNECTION LIMIT 9'; END $$")  # fmt: skip
    of_database = (await examined(postgres_dsn, pool_max_size=8, workers=1))["connections"]
    assert (of_database.outcome, "of 9 (the database's limit)" in of_database.found) == ("failure", True)


@pytest.mark.postgres
async def test_a_server_that_takes_no_writes_and_one_that_may_lose_them(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    await made(postgres_dsn)
    read_only = (await examined(f"{postgres_dsn}?options=-c%20default_transaction_read_only%3Don"))["server"]
    assert (read_only.outcome, "target_session_attrs" in str(read_only.advice)) == ("failure", True)
    forgets = (await examined(f"{postgres_dsn}?options=-c%20synchronous_commit%3Doff"))["server"]
    assert (forgets.outcome, forgets.advice) == ("warning", "Set synchronous_commit to on.")
    ascii_only = f"{postgres_dsn.rpartition('/')[2]}_ascii"
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        owner.execute(
            f"CREATE DATABASE {ascii_only} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
    dsn = f"{postgres_dsn}_ascii"
    try:
        assert "SQL_ASCII" in (await examined(dsn))["server"].found
    finally:
        postgres_server.drop_database(dsn)


async def test_a_pooler_in_transaction_mode_is_seen_and_what_breaks_behind_it(
    postgres_dsn: str, pgbouncer_dsn: str
) -> None:
    await made(postgres_dsn)
    assert "none between" in (await examined(postgres_dsn, prepare_threshold=5))["pooler"].found
    found = await examined(pgbouncer_dsn, workers=7)
    assert found["pooler"].outcome == "ok"
    assert "A pooler in transaction mode stands between" in found["pooler"].found
    assert (found["connections"].outcome, "above 84" in str(found["connections"].advice)) == ("skipped", True)
    assert outcomes(found, "failure") == set()
    for options, told in (
        ({"prepare_threshold": 5}, "prepare_threshold to null"),
        ({"pipeline": True}, "pipeline to false"),
        ({"prepare_threshold": 0, "pipeline": True}, "prepare_threshold to null and pipeline to false"),
    ):
        pooler = (await examined(pgbouncer_dsn, **options))["pooler"]
        assert (pooler.outcome, pooler.advice) == ("failure", f"Set the option {told}.")


@pytest.mark.pgbouncer
@pytest.mark.parametrize(("mode", "outcome"), [("session", "ok"), ("statement", "failure")])
async def test_a_pooler_s_other_modes_are_told_apart(
    postgres_server: PostgresServer, pgbouncer_server: PgBouncer, postgres_dsn: str, mode: str, outcome: str
) -> None:
    await made(postgres_dsn)
    with pgbouncer.start_pgbouncer(postgres_server, mode) as another:
        pooler = (await examined(another.dsn(postgres_dsn)))["pooler"]
    assert (pooler.outcome, f"in {mode} mode" in pooler.found) == (outcome, True)


# ── MongoDB ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mongodb
async def test_a_mongodb_user_without_rights_is_told(guarded: dict[str, str]) -> None:
    await made(guarded["owner"])
    for user in ("owner", "writer"):
        found = await examined(guarded[user])
        assert found["rights"].outcome == "ok", user
        assert found["connections"].outcome == "skipped", "it may not ask for the server's status"
    found = await examined(guarded["reader"])
    assert found["rights"].outcome == "failure"
    assert "lacks insert in chat, update in chat, remove in chat" in found["rights"].found
    assert found["rights"].advice == "Grant it readWrite on chat."
    wrong = await examined(guarded["owner"].replace("s3cret", "an0ther"))
    assert (wrong["reachable"].outcome, "refused the user" in wrong["reachable"].found) == ("failure", True)
    assert "an0ther" not in repr(wrong)


@pytest.mark.mongodb
async def test_a_mongodb_server_that_is_too_old_is_told(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_doctor, "OLDEST_WIRE", 1000)
    server = (await examined(mongodb_uri))["server"]
    assert (server.outcome, server.advice) == ("failure", "Upgrade it to 6.0 or later.")


@pytest.mark.mongodb
async def test_a_mongodb_server_that_stands_alone_and_one_without_an_index(
    standalone_mongodb_server: LocalMongoServer, mongodb_uri: str
) -> None:
    alone = standalone_mongodb_server.create_database()
    await made(alone)
    assert "stands alone" in (await examined(alone))["server"].found
    await made(mongodb_uri)
    assert (await examined(mongodb_uri))["server"].outcome == "ok"
    unsafe = (await examined(f"{mongodb_uri}{'&' if '?' in mongodb_uri else '?'}w=1"))["server"]
    assert (unsafe.outcome, "may be lost" in unsafe.found) == ("warning", True)
    with MongoClient[Any](mongodb_uri) as client:
        client.get_default_database()["app_runs"].drop_index("of_thread")
    lost = (await examined(mongodb_uri))["schema"]
    assert (lost.outcome, "app_runs.of_thread" in lost.found) == ("warning", True)
    too_many = (await examined(mongodb_uri, workers=100_000))["connections"]
    assert too_many.outcome == "failure"


# ── SQLite, and the schemes that keep less ───────────────────────────────────────────────────────────────


async def test_a_sqlite_file_that_others_may_read_or_nobody_may_write(tmp_path: Path) -> None:
    file = tmp_path / "skeino.db"
    uri = f"sqlite:///{file}"
    await made(uri)
    file.chmod(0o644)
    rights = (await examined(uri))["rights"]
    assert (rights.outcome, rights.advice) == ("warning", f"chmod 600 {file}")
    file.chmod(0o600)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    assert (await examined(uri))["server"].outcome == "warning"
    file.write_bytes(b"This is no database, and longer than a header of one. " * 40)
    none = await examined(uri)
    assert none["reachable"].outcome == "failure"
    assert outcomes(none, "skipped") == {*ALL_CHECKS}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_schemes_that_keep_less_say_so(redis_dsn: str) -> None:
    redis = SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=redis_dsn, allow_ephemeral_metadata=True)
    found = {check.name: check async for check in examine(redis)}
    assert (found["reachable"].outcome, found["runs"].outcome) == ("ok", "warning")
    away = redis.model_copy(update={"checkpointer_uri": "redis://u:s3cret@127.0.0.1:9"})
    found = {check.name: check async for check in examine(away)}
    assert found["reachable"].outcome == "failure"
    assert "s3cret" not in repr(found)


async def test_what_the_application_would_not_start_with_is_refused() -> None:
    for settings, told in (
        ({"checkpointer_scheme": "sqlite", "checkpointer_options": {"pool_max_size": 1}}, "no checkpointer option"),
        ({"checkpointer_scheme": "sqlite", "checkpointer_options": {"busy_timeout": "x"}}, "must be of type"),
        ({"checkpointer_options": {"max_runs": "x"}}, "must be of type"),
        ({"checkpointer_scheme": "redis"}, "allow_ephemeral_metadata=True"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            [check async for check in examine(SkeinoSettings(checkpointer_uri="x.db", **settings))]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "No scheme is set in the environment"),
        ({"checkpointer_uri": "x.db"}, "only checkpointer_scheme chooses a backend"),
        ({"checkpointer_scheme": "memory", "checkpointer_uri": "x.db"}, None),
    ],
)
async def test_a_scheme_that_is_not_set_is_memory_and_that_is_told(settings: dict[str, Any], told: str | None) -> None:
    found = {check.name: check async for check in examine(SkeinoSettings(**settings))}
    assert found["reachable"].outcome == "skipped"
    assert ("scheme" in found) is (told is not None)
    if told is not None:
        assert found["scheme"].outcome == "warning"
        assert told in found["scheme"].found


# ── Without a database ───────────────────────────────────────────────────────────────────────────────────


def test_versions_with_known_advisories_are_named_with_what_to_install() -> None:
    installed = {"langgraph": "1.0.9", "langgraph-checkpoint": "4.1.1rc1", "starlette": "1.10.0"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    check = checks.of_versions(version)
    assert check.outcome == "failure"
    assert "langgraph 1.0.9 (fixed in 1.0.10), langgraph-checkpoint 4.1.1rc1 (fixed in 4.1.1)." in check.found
    assert check.advice == "Upgrade: pip install -U 'langgraph>=1.0.10' 'langgraph-checkpoint>=4.1.1'."
    installed |= {"langgraph": "1.0.10", "langgraph-checkpoint": "4.1.1.post1"}
    assert checks.of_versions(version).outcome == "ok"


def test_the_project_asks_for_no_version_with_a_known_advisory() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    floors: dict[str, str] = {}
    for requirement in wanted:
        if found := re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement):
            floors.setdefault(found[1], found[2])
    for package, floor in checks.FLOORS.items():
        assert checks._release(floors[package]) >= checks._release(floor), package


@pytest.mark.parametrize(("value", "outcome"), [("true", "ok"), ("1", "ok"), ("false", "warning"), ("", "warning")])
def test_strict_msgpack_is_noticed_as_langgraph_reads_it(value: str, outcome: str) -> None:
    told = json.loads(run("--json", LANGGRAPH_STRICT_MSGPACK=value).stdout)
    assert {check["name"]: check["outcome"] for check in told["checks"]}["strict msgpack"] == outcome


def test_clocks_are_compared_with_the_time_that_asking_took() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for seconds, outcome in ((0, "ok"), (5, "ok"), (-1.9, "ok"), (11.9, "ok"), (-3, "warning"), (13, "warning")):
        check = checks.of_clock(moment + timedelta(seconds=seconds), moment, moment + timedelta(seconds=10))
        assert check.outcome == outcome, seconds
    assert "3 s behind" in checks.of_clock(moment + timedelta(seconds=3), moment, moment).found


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────


async def test_people_read_a_table_and_programs_json(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/skeino.db"
    await made(uri)
    well = run("--uri", uri, LANGGRAPH_STRICT_MSGPACK="true")
    assert (well.returncode, well.stderr) == (0, "")
    assert well.stdout.endswith("All is well.\n")
    assert "warning" not in well.stdout
    warned = run(DOCTOR_URI=uri)
    assert warned.returncode == 0
    assert "→ Set LANGGRAPH_STRICT_MSGPACK=true" in warned.stdout
    assert warned.stdout.endswith("0 failures, 1 warning: see above what to do.\n")
    told = json.loads(run("--json", SKEINO_CHECKPOINTER_SCHEME="sqlite3", SKEINO_CHECKPOINTER_URI=uri).stdout)
    assert (told["scheme"], told["healthy"]) == ("sqlite", True)
    assert {check["outcome"] for check in told["checks"]} == {"ok", "warning", "skipped"}
    assert all(check.keys() == {"name", "outcome", "found", "advice"} for check in told["checks"])


@pytest.mark.parametrize("scheme", ["postgresql", "mongodb"])
def test_a_server_that_is_away_is_status_1_and_the_rest_is_skipped(scheme: str) -> None:
    options = {"SKEINO_CHECKPOINTER_OPTIONS": '{"connect_timeout": 1}'}
    uri = {"SKEINO_CHECKPOINTER_SCHEME": scheme, "SKEINO_CHECKPOINTER_URI": f"{scheme}://u:s3cret@127.0.0.1:9/x"}
    failed = run("--json", **uri, **options)
    assert failed.returncode == 1
    told = json.loads(failed.stdout)
    found = {check["name"]: check["outcome"] for check in told["checks"]}
    assert (told["healthy"], found["reachable"]) == (False, "failure")
    assert {name for name, outcome in found.items() if outcome == "skipped"} == {*ALL_CHECKS}
    assert "s3cret" not in failed.stdout + failed.stderr


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    assert run("--uri", f"sqlite:///{tmp_path}/a.db").stderr == ""
    assert "Looking" in run("--uri", f"sqlite:///{tmp_path}/a.db", FORCE_COLOR="1").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["postgresql://u:s3cret@h/x"], "takes options only"),
        (["--uri", "a.db"], "--uri must begin with its scheme"),
        (["--uri", "postgresql://u:s3cret@h:x/y"], "is no PostgreSQL connection string"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_what_cannot_be_meant_is_status_2_without_a_secret(arguments: list[str], told: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "s3cret" not in refused.stdout + refused.stderr


def test_help_names_the_options_and_statuses() -> None:
    shown = run("--help").stdout
    for told in ("--workers", "--uri", "DOCTOR_URI", "--json", "Exit status", "Nothing is written"):
        assert told in shown
