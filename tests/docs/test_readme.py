"""The README's code does what the README says."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino_asgi import RunMiddleware, RunTracker
from tests.docs.blocks import ROOT, blocks_of, exported, run_block
from tests.http_client import httpx

BLOCKS = [block for block in blocks_of(ROOT / "README.md", "python") if block.not_run is None]


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, with its lifespan."""
    async with LifespanManager(app) as manager:
        transport = httpx.ASGITransport(app=manager.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture
async def namespaces(builder: Any) -> dict[str, dict[str, Any]]:
    """What the README's names stood for after each block, by a word that only this block has."""
    names: dict[str, Any] = {"builder": builder, "JSONResponse": JSONResponse}

    async def one_of_the_readers_endpoints(request: Request) -> Response:
        response: Response = await seen["getting started"]["chat"](request)
        return response

    names["app"] = Starlette(routes=[Route("/chat", one_of_the_readers_endpoints, methods=["POST"])])
    names["settings"] = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db")
    names["__name__"] = "__docs__"
    seen: dict[str, dict[str, Any]] = {}
    for block, title in zip(BLOCKS, TITLES, strict=True):
        await run_block(block, names)
        seen[title] = dict(names)
    return seen


TITLES = (
    "one line",
    "getting started",
    "native",
    "ledger",
    "owners",
    "human in the loop",
    "worker",
    "script",
    "logs",
)


async def test_one_line_makes_the_readers_application_remember_its_threads(namespaces: Any) -> None:
    for times in (1, 2):  # the second time after a restart
        async with client_of(namespaces["one line"]["app"]) as client:
            response = await client.post("/chat", json="Hello", headers={"X-Thread-ID": "first"})
        assert response.json() == ["Hello", "You said Hello"] * times
        assert response.headers["x-run-id"]
        assert "x-thread-id" not in response.headers

    async with client_of(namespaces["one line"]["app"]) as client:
        fresh = await client.post("/chat", json="Hello")
    assert fresh.json() == ["Hello", "You said Hello"]
    assert fresh.headers["x-thread-id"]


async def test_the_native_application_compiles_once_and_answers(namespaces: Any) -> None:
    async with client_of(namespaces["native"]["app"]) as client:
        response = await client.post("/chat", params={"message": "Hello"}, headers={"X-Thread-ID": "native"})

    assert response.json() == {"messages": ["Hello", "You said Hello"]}
    async with open_persistence(namespaces["native"]["tracker"].settings) as persistence:
        run = await persistence.metadata_store.get_run(response.headers["x-run-id"])
    assert run is not None
    assert (run["thread_id"], run["status"], run["checkpoint_count"]) == ("native", "success", 3)
    assert run["kwargs"] == {"method": "POST", "path": "/chat"}


@pytest.mark.parametrize(("wrapping", "named"), [("inside", False), ("outside", True)])
async def test_an_error_page_of_the_framework_names_the_run_only_from_outside(wrapping: str, named: bool) -> None:
    def fail(request: Request) -> Response:
        raise RuntimeError("no answer")

    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="errors.db"))
    inner = Starlette(routes=[Route("/", fail)], lifespan=tracker.lifespan)
    app: Any = inner
    if wrapping == "inside":
        inner.add_middleware(RunMiddleware, tracker=tracker)
    else:
        app = RunMiddleware(inner, tracker=tracker)
    async with LifespanManager(app) as manager:
        transport = httpx.ASGITransport(app=manager.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/")
    assert response.status_code == 500
    assert ("x-run-id" in response.headers) is named
    async with open_persistence(tracker.settings) as persistence:
        (run,) = await persistence.metadata_store.search_runs()
    assert run["error"] is not None
    assert (run["error"]["type"], run["http_status"]) == ("RuntimeError", 500 if named else None)


async def test_a_thread_of_another_owner_is_not_found_and_health_is_no_run(namespaces: Any) -> None:
    app = namespaces["owners"]["app"]
    async with client_of(app) as client:
        made = await client.post("/threads/t9/x", headers={"X-Tenant": "ada"})
        refused = await client.post("/threads/t9/x", headers={"X-Tenant": "bob"})
        health = await client.get("/health", headers={"X-Tenant": "ada"})

    assert made.headers["x-run-id"]
    assert (refused.status_code, refused.json()["error"]) == (404, "thread_not_found")
    assert "x-run-id" not in health.headers


async def test_a_worker_makes_each_job_a_run(namespaces: Any) -> None:
    names = namespaces["worker"]
    await names["work"]([("job-1", "Hello"), ("job-2", "Hello")])

    async with open_persistence(names["settings"]) as persistence:
        found = await persistence.metadata_store.search_runs(metadata={"queue": "mail"})
    assert {run["thread_id"] for run in found} == {"job-1", "job-2"}


async def test_log_records_name_run_and_thread(namespaces: Any, caplog: pytest.LogCaptureFixture) -> None:
    names = namespaces["logs"]
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO"})
    names["handler"].filter(record)
    assert names["handler"].format(record) == "INFO - - hello"

    async with names["tracker"].lifespan(), names["tracker"].run(thread_id="t1") as run:
        names["handler"].filter(record)
    assert names["handler"].format(record) == f"INFO {run.run_id} t1 hello"


def test_the_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    (exports,) = (block for block in blocks_of(ROOT / "README.md", "sh") if "SKEINO_" in block.code)
    for name, value in exported(exports.code).items():
        monkeypatch.setenv(name, value)
    settings = SkeinoSettings()

    assert settings.checkpointer_scheme == "postgres"
    assert settings.checkpointer_uri == "postgresql://app@db.example.com:5432/chat?sslmode=verify-full"
    assert settings.checkpointer_options == {"pool_max_size": 20, "setup_schema": False}
