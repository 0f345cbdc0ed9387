"""FastAPI's endpoints take what they need as parameters."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from starlette.testclient import TestClient

from skeino import ConfigurationError, Run, SkeinoSettings, current_run
from skeino_asgi import RunMiddleware
from skeino_asgi.fastapi import Checkpointer, CurrentMetadataStore, CurrentRun, OptionalRun
from tests.asgi.graphs import compiled


def app_with(**options: Any) -> FastAPI:
    app = FastAPI()

    async def id_of(run: CurrentRun) -> str:  # a dependency of a dependency
        return run.run_id

    @app.post("/chat")
    async def chat(
        word: str,
        run: CurrentRun,
        checkpointer: Checkpointer,
        store: CurrentMetadataStore,
        same: str = Depends(id_of),
    ) -> dict[str, Any]:
        assert run is current_run()
        assert isinstance(run, Run)
        assert same == run.run_id
        words = (await compiled(checkpointer).ainvoke({"words": [word]}, run.config))["words"]
        row = await store.get_run(run.run_id)
        assert row is not None
        return {"words": words, "status": row["status"]}

    @app.post("/sync")
    def chat_in_a_thread(word: str, run: CurrentRun, checkpointer: Checkpointer) -> list[str]:
        words: list[str] = compiled(checkpointer).invoke({"words": [word]}, run.config)["words"]
        return words

    @app.get("/health")
    async def health(run: CurrentRun) -> None:
        raise AssertionError

    @app.get("/health/optional")
    async def optional(run: OptionalRun) -> bool:
        return run is None

    @app.websocket("/ws")
    async def talk(websocket: WebSocket, run: CurrentRun) -> None:
        await websocket.accept()
        await websocket.send_text(run.run_id)
        await websocket.close()

    app.add_middleware(RunMiddleware, settings=SkeinoSettings(), exclude=["/health", "/health/*"], **options)
    return app


@pytest.mark.parametrize("record", ["always", "on_use"])
def test_the_run_the_checkpointer_and_the_store_are_parameters(record: str) -> None:
    with TestClient(app_with(record=record)) as client:
        headers = {"X-Thread-ID": "t1"}
        first = client.post("/chat?word=a", headers=headers).json()
        assert first == {"words": ["a", "echo a"], "status": "running"}
        second = client.post("/sync?word=b", headers=headers).json()
        assert second == ["a", "echo a", "b", "echo b"]


def test_they_are_no_parameters_of_the_api() -> None:
    with TestClient(app_with()) as client:
        document = client.get("/openapi.json").json()
    assert [one["name"] for one in document["paths"]["/chat"]["post"]["parameters"]] == ["word"]


def test_a_websocket_has_its_run_where_connections_are_tracked() -> None:
    with TestClient(app_with(track_websockets=True)) as client, client.websocket_connect("/ws") as websocket:
        assert websocket.receive_text()


def test_a_request_that_is_no_run_says_so() -> None:
    with TestClient(app_with()) as client, pytest.raises(ConfigurationError, match="/health asks for the current run"):
        client.get("/health")


def test_a_request_that_may_be_no_run_says_none() -> None:
    with TestClient(app_with()) as client:
        assert client.get("/health/optional").json() is True


def test_an_application_without_the_middleware_says_what_is_missing() -> None:
    app = FastAPI()

    @app.get("/")
    async def endpoint(checkpointer: Checkpointer) -> None:
        raise AssertionError

    expected = r"asks for the checkpointer.*RunMiddleware"
    with TestClient(app) as client, pytest.raises(ConfigurationError, match=expected):
        client.get("/")
