"""The tracker, the middleware and what they give."""

from typing import Any, assert_type

from langgraph.checkpoint.base import BaseCheckpointSaver
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from skeino import Run, SkeinoSettings, current_run
from skeino.persistence import RunRow
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans


async def user_of(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"))
app = Starlette(
    lifespan=combine_lifespans(tracker.lifespan),
    middleware=[Middleware(RunMiddleware, tracker=tracker, owner=user_of, on_disconnect="cancel")],
)
app.add_middleware(RunMiddleware, tracker=tracker, thread_id=lambda connection: connection.query_params.get("t"))
RunMiddleware(app, tracker=tracker, record="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def work() -> None:
    assert_type(current_run(), Run | None)
    async with tracker.lifespan() as state:
        assert_type(state, dict[str, Any])
        assert_type(tracker.checkpointer, BaseCheckpointSaver[Any])
        async with tracker.run(thread_id="t1") as run:
            assert_type(run, Run)
        row = await tracker.metadata_store.get_run(run.run_id)
        assert_type(row, RunRow | None)
        if row is not None:
            assert_type(row["thread_id"], str | None)
