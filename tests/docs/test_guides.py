"""The pages under docs/: their code runs, and does what the page says."""

import asyncio
import gc
import inspect
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import psycopg.conninfo
import pytest
import structlog
from starlette.applications import Starlette
from typer.main import get_command

from skeino import SchemaError, SkeinoSettings, StoreUnavailableError
from skeino.cli import app
from skeino.persistence import CheckpointerSpec, open_persistence
from skeino.persistence.mongodb.clients import address_of
from skeino.persistence.rows import RunError
from skeino.persistence.versions import SchemaState
from skeino.settings import SWEEP_INTERVAL_MINUTES
from skeino_asgi import RunTracker
from tests.asgi.conftest import answering
from tests.docs.blocks import ROOT, blocks_of, exported, run_python
from tests.docs.test_tables import table
from tests.http_client import httpx
from tests.servers.postgres import LocalPostgresServer, with_parameters
from tests.startup.test_schema_command import run as skeino_schema


async def test_persistence(capsys: pytest.CaptureFixture[str]) -> None:
    await run_python("docs/persistence.md")

    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "StampedSqliteSaver SqliteMetadataStore"
    assert "allow_ephemeral_metadata=True" in shown[1]
    assert shown[2:] == ["There is no thread 't1'.", "0 ['t2']"]


async def test_retention() -> None:
    names = await run_python("docs/retention.md")

    settings: SkeinoSettings = names["settings"]
    assert settings.sweep_interval == 60 * SWEEP_INTERVAL_MINUTES
    async with open_persistence(settings) as persistence:
        ttls = {row["thread_id"]: row["ttl"] for row in await persistence.metadata_store.search_threads()}
    assert ttls == {"by default": settings.thread_ttl, "an hour": None, "for ever": None}
    # The page's table says of its settings what the README says of all.
    shown = {row[0]: row[1] for row in table(ROOT / "docs/retention.md", "setting")}
    assert shown == {row[0]: row[2] for row in table(ROOT / "README.md", "field") if row[0] in shown}


async def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    await run_python("docs/doctor.md")
    shown = capsys.readouterr().out.splitlines()
    checks = [" ".join(line.split(" ")[:2]) if line.startswith("strict") else line.split(" ")[0] for line in shown]
    assert checks == [row[0] for row in table(ROOT / "docs/doctor.md", "check")]


def test_the_commands_are_those_of_the_command_line() -> None:
    documented = {row[0].split(" ")[-1] for row in table(ROOT / "README.md", "command")}
    assert documented == {*get_command(app).commands}  # type: ignore[attr-defined]


async def test_custom_checkpointer(capsys: pytest.CaptureFixture[str]) -> None:
    names = await run_python("docs/custom-checkpointer.md")

    shown = capsys.readouterr().out
    assert "mydb mydb://localhost/chat {'replicas': 2}" in shown
    assert names["report"].passed_all_base()
    async with open_persistence(names["settings"]) as persistence:
        assert type(persistence.checkpointer).__name__ == "StampedInMemorySaver"
        assert isinstance(persistence.checkpointer, names["InMemorySaver"])


async def test_a_shared_resource_is_opened_once_and_closed_after_both_halves() -> None:
    names = await run_python("docs/custom-checkpointer.md")
    opened: list[Any] = []

    def counted(uri: str, make: Any = names["Client"]) -> Any:
        opened.append(make(uri))
        return opened[-1]

    names["Client"] = counted
    async with open_persistence(names["shared"]):
        (client,) = opened
        assert client.is_open
    assert not client.is_open


async def test_runs() -> None:
    names = await run_python("docs/runs.md", app=Starlette())

    tracker: RunTracker = names["tracker"]
    async with open_persistence(tracker.settings) as persistence:  # a process that died
        run_id = "01978f1e-0000-7000-8000-000000000000"
        await persistence.metadata_store.start_run(run_id, worker_id="web1-4711-x", thread_id="left")
    assert await names["end_runs_of"]("web1", 471) == 0
    assert await names["end_runs_of"]("web1", 4711) == 1
    async with open_persistence(tracker.settings) as persistence:
        run = await persistence.metadata_store.get_run(run_id)
        thread = await persistence.metadata_store.get_thread("left")
    assert run is not None
    assert thread is not None
    assert (run["status"], thread["status"]) == ("interrupted", "interrupted")
    assert run["error"] == RunError(code="worker_died", type=None, message="The process ended before the run.")


async def test_runs_fails_a_stream_that_ends_well_formed(builder: Any) -> None:
    names = await run_python("docs/runs.md", app=Starlette())

    async def astream(*arguments: Any) -> Any:
        yield {"messages": ["Hel"]}
        raise ValueError("no model")

    names["graph"] = SimpleNamespace(astream=astream)
    tracker: RunTracker = names["tracker"]
    async with tracker.lifespan():
        async with tracker.run() as run:
            request = SimpleNamespace(state=SimpleNamespace(run=run))
            chunks = [chunk async for chunk in names["stream"](request)]
        row = await tracker.metadata_store.get_run(run.run_id)
    assert chunks == [{"messages": ["Hel"]}, {"error": "the model is away"}]
    assert row is not None
    assert row["error"] is not None
    assert (row["status"], row["error"]["type"]) == ("error", "ValueError")


async def test_settings() -> None:
    names = await run_python("docs/settings.md")
    async with open_persistence(names["settings"]) as persistence:
        assert type(persistence.metadata_store).__name__ == "SqliteMetadataStore"


async def test_testing(builder: Any) -> None:
    names = await run_python("docs/testing.md", your_application=answering(), builder=builder)

    tests = [name for name in names if name.startswith("test_")]
    assert len(tests) == 4
    for name in tests:
        test = names[name]
        await test() if inspect.iscoroutinefunction(test) else await asyncio.to_thread(test)


async def test_observability(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        names = await run_python("docs/observability.md", app=answering())

        added = [handler for handler in root.handlers if handler not in before]
        assert added == [names["handler"]]
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-Thread-ID": "t1"}
        tracker: RunTracker = names["tracker"]
        async with tracker.lifespan():
            transport = httpx.ASGITransport(app=names["app"])
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.post("/", headers=headers)
            (run,) = await names["runs_of_trace"](trace_id)
            assert run["run_id"] == response.headers["x-run-id"]
            async with tracker.run(thread_id="t1") as inner:
                logging.getLogger("app").warning("at work")
                structlog.get_logger().info("at work", step=1)
        assert f"WARNING {inner.run_id} t1 at work" in capsys.readouterr().err
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()


async def test_endings() -> None:
    tracker = RunTracker(SkeinoSettings())
    names = await run_python("docs/endings.md", app=Starlette(), tracker=tracker)

    assert names["app"].tracker is tracker
    names["STREAM_SECONDS"] = 0.05
    queue: asyncio.Queue[str] = asyncio.Queue()
    queue.put_nowait("one")
    queue.put_nowait("two")
    assert [event async for event in names["events"](queue)] == ["data: one\n\n", "data: two\n\n"]


async def test_moving(capsys: pytest.CaptureFixture[str], builder: Any) -> None:
    names = await run_python("docs/moving.md", builder=builder)

    assert capsys.readouterr().out.splitlines() == [
        "1 threads, 3 checkpoints",
        "verified",
        "['Hello', 'You said Hello', 'Again', 'You said Again']",
    ]
    async with open_persistence(names["target"]) as persistence:
        assert await persistence.metadata_store.get_thread("t1", owner="ada") is not None


def test_the_tables_of_moving_are_the_commands() -> None:
    page = (ROOT / "docs/moving.md").read_text()
    options = {option for one in get_command(app).commands["copy"].params for option in one.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"`(--[a-z-]+)`", page)) | {"--help"} == options | {"--help"}
    exports = "".join(block.code for block in blocks_of(ROOT / "docs/moving.md", "sh") if "export" in block.code)
    assert re.findall(r"export (\w+)=", exports) == ["COPY_FROM", "COPY_TO"]


def test_the_schema_page_names_the_commands_options_and_messages() -> None:
    page = (ROOT / "docs/schema.md").read_text()
    options = {option for one in get_command(app).commands["schema"].params for option in one.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"(--[a-z]+)", page)) == options
    (message,) = (block.code for block in blocks_of(ROOT / "docs/schema.md", "text"))
    assert message.strip() == SchemaState(known=1, version=3, compatible_from=3).refused


async def test_postgres(
    private_postgres_server: LocalPostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    builder: Any,
    tmp_path: Path,
) -> None:
    """The page from top to bottom, on a server where nothing has been set up."""
    server = private_postgres_server
    roles, grants, schema = blocks_of(ROOT / "docs/postgres.md", "sql")
    execute(server.dsn, roles.code)
    chat = with_parameters(server.dsn, dbname="chat")
    owner = with_parameters(chat, user="app", password="choose-one")
    web = with_parameters(chat, user="web", password="choose-another")

    with pytest.raises(SchemaError) as caught:
        await use_both_halves(settings_for(owner, setup_schema=False), builder)
    (quoted,) = (block.code for block in blocks_of(ROOT / "docs/postgres.md", "text") if "SchemaError" in block.code)
    assert f"skeino.errors.SchemaError: {caught.value}" == " ".join(quoted.split())

    (command,) = (block.code for block in blocks_of(ROOT / "docs/postgres.md", "sh") if "skeino schema" in block.code)
    assert command.startswith("SCHEMA_URI=")
    assert command.endswith("python -m skeino schema --apply\n")
    assert skeino_schema("--apply", SCHEMA_URI=owner).stdout == "The schema has version 1 now.\n"

    monkeypatch.setenv("SKEINO_CHECKPOINTER_SCHEME", "postgres")
    monkeypatch.setenv("SKEINO_CHECKPOINTER_URI", owner)
    names = await run_python("docs/postgres.md")
    assert capsys.readouterr().out.startswith(
        "PostgreSQL at 127.0.0.1:9/chat cannot be reached: the connection was refused"
    )
    await use_both_halves(names["settings"], builder)  # prepared statements and the pipeline

    execute(chat, grants.code)
    await use_both_halves(settings_for(web, setup_schema=False), builder)
    await use_both_halves(settings_for(web), builder)
    await use_both_halves(settings_for(f"{web}?options=-c%20statement_timeout%3D10s&application_name=chat"), builder)

    password_file = tmp_path / "pgpass"
    password_file.write_text("*:*:chat:app:choose-one\n")
    password_file.chmod(0o600)
    without_password = f"{with_parameters(chat, user='app', password='')}?passfile={password_file}"
    await use_both_halves(settings_for(without_password), builder)
    with pytest.raises(StoreUnavailableError, match="SSL"):  # this server has none
        await use_both_halves(settings_for(f"{owner}?sslmode=require"), builder)

    execute(chat, schema.code)
    await use_both_halves(settings_for(owner), builder)
    with psycopg.connect(chat) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'skeino'").fetchone()
    assert found == (9,)


# PyMongo leaves the socket of a heartbeat that is cancelled by `close()` to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_mongodb(mongodb_uri: str, capsys: pytest.CaptureFixture[str], builder: Any) -> None:
    names = await run_python("docs/mongodb.md")
    assert type(names["with_client"].checkpointer_options["client"]).__name__ == "AsyncIOMotorClient"
    names["client"].close()

    gc.collect()
    shown = capsys.readouterr().out
    assert shown.startswith("MongoDB at 127.0.0.1:9/chat cannot be reached: the connection was refused")
    settings = settings_for(mongodb_uri, **names["settings"].checkpointer_options)
    settings = settings.model_copy(update={"checkpointer_scheme": "mongodb"})
    with pytest.raises(SchemaError, match="app_threads, app_runs"):
        await use_both_halves(settings, builder)
    await use_both_halves(settings.model_copy(update={"checkpointer_options": {}}), builder)
    await use_both_halves(settings, builder)
    own = "&serverSelectionTimeoutMS=15000&maxPoolSize=50&appName=chat"
    await use_both_halves(settings.model_copy(update={"checkpointer_uri": mongodb_uri + own}), builder)


def test_the_variables_of_the_mongodb_page_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs/mongodb.md", "sh") if "SKEINO_" in block.code)
    lines = [line for line in block.code.splitlines() if line.startswith("export")]
    for name, value in exported("\n".join(lines)).items():
        monkeypatch.setenv(name, value)

    settings = SkeinoSettings()
    assert settings.checkpointer_scheme == "mongodb"
    assert address_of(CheckpointerSpec("mongodb", settings.checkpointer_uri)).place == "localhost:27017/chat"


async def test_redis(redis_dsn: str, capsys: pytest.CaptureFixture[str], builder: Any) -> None:
    names = await run_python("docs/redis.md")

    assert "allow_ephemeral_metadata=True" in capsys.readouterr().out
    await use_both_halves(names["settings"].model_copy(update={"checkpointer_uri": redis_dsn}), builder)


def test_the_variables_of_the_redis_page_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs/redis.md", "sh") if "SKEINO_" in block.code)
    lines = [line for line in block.code.splitlines() if line.startswith("export")]
    for name, value in exported("\n".join(lines)).items():
        monkeypatch.setenv(name, value)

    settings = SkeinoSettings()
    assert (settings.checkpointer_scheme, settings.allow_ephemeral_metadata) == ("redis", True)
    assert "localhost:6379" in str(settings.checkpointer_uri)


async def test_nothing_changes_behind_pgbouncer_but_session_parameters_do_not_pass(
    pgbouncer_dsn: str, builder: Any
) -> None:
    await use_both_halves(settings_for(pgbouncer_dsn), builder)
    with pytest.raises(StoreUnavailableError):
        await use_both_halves(settings_for(f"{pgbouncer_dsn}?options=-c%20statement_timeout%3D10s"), builder)


@pytest.mark.parametrize("number", range(2))
def test_the_variables_of_the_postgres_page_are_settings(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = [block for block in blocks_of(ROOT / "docs/postgres.md", "sh") if "SKEINO_" in block.code]
    lines = [line for line in exports[number].code.splitlines() if line.startswith("export")]
    for name, value in exported("\n".join(lines)).items():
        monkeypatch.setenv(name, value)

    settings = SkeinoSettings()
    assert settings.checkpointer_uri is not None
    assert psycopg.conninfo.conninfo_to_dict(settings.checkpointer_uri)["dbname"] == "chat"
    assert len(exports) == 2


def settings_for(uri: str, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=uri, checkpointer_options=options)


async def use_both_halves(settings: SkeinoSettings, builder: Any) -> None:
    """Write, read and delete in both."""
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        graph = builder.compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="t1") as run:
            await graph.ainvoke({"messages": ["Hello"]}, run.config)
        row = await tracker.metadata_store.get_run(run.run_id)
        assert row is not None
        assert (row["status"], row["checkpoint_count"]) == ("success", 3)
        assert len([snapshot async for snapshot in graph.aget_state_history(run.config)]) == 3
        await tracker.persistence.delete_thread("t1")
        assert await tracker.checkpointer.aget_tuple(run.config) is None


def execute(dsn: str, code: str) -> None:
    """The statements, as psql would run them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in code.split(";"):
            if statement.strip():
                connection.execute(statement.encode())
