"""FastAPI dependencies: what a request has, as parameters of its endpoint.

    from skeino_asgi.fastapi import Checkpointer, CurrentRun

    @app.post("/chat")
    async def chat(message: str, run: CurrentRun, checkpointer: Checkpointer) -> ...:
        graph = builder.compile(checkpointer=checkpointer)
        return await graph.ainvoke({"messages": [message]}, run.config)

They find what `RunMiddleware` has put into the request's state, and serve WebSocket endpoints, too.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from langgraph.checkpoint.base import BaseCheckpointSaver
from starlette.requests import HTTPConnection

from skeino.errors import ConfigurationError
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.runs import Run


async def _run(connection: HTTPConnection) -> Run:
    run = await _run_or_none(connection)
    if run is None:
        raise ConfigurationError(
            f"{connection.scope['path']} asks for the current run, but this request has none: it is a HEAD or OPTIONS "
            "request, a WebSocket without track_websockets=True, or excluded, or was served while the database was "
            "away (on_store_error='untracked'). Take OptionalRun there."
        )
    return run


async def _run_or_none(connection: HTTPConnection) -> Run | None:
    return _found(connection, "run")  # type: ignore[no-any-return]


async def _checkpointer(connection: HTTPConnection) -> BaseCheckpointSaver[Any]:
    return _found(connection, "checkpointer")  # type: ignore[no-any-return]


async def _metadata_store(connection: HTTPConnection) -> MetadataStoreProtocol:
    return _found(connection, "metadata_store")  # type: ignore[no-any-return]


def _found(connection: HTTPConnection, name: str) -> Any:
    state: dict[str, Any] = connection.scope.get("state") or {}
    if name not in state:
        raise ConfigurationError(
            f"{connection.scope['path']} asks for the {name}, which is not there: add RunMiddleware to the "
            "application, and see whether the database could be reached."
        )
    return state[name]


CurrentRun = Annotated[Run, Depends(_run)]
"""The request's `Run`; where it has none, the endpoint fails with `ConfigurationError`."""

OptionalRun = Annotated[Run | None, Depends(_run_or_none)]
"""The request's `Run`, or None where it is not tracked, or is served while the database is away."""

Checkpointer = Annotated[BaseCheckpointSaver[Any], Depends(_checkpointer)]
"""The stamped checkpointer, to compile a graph with."""

CurrentMetadataStore = Annotated[MetadataStoreProtocol, Depends(_metadata_store)]
"""Thread and run rows."""
