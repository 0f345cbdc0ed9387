"""What uvicorn serves, in a process of its own: `python -m benchmarks.serving WAY PORT`.

The same endpoints in each way: `/ok` answers, `/graph` runs a graph on the thread that the request names, `/held` is
answered when `/clock/release` is asked for. Where runs and state are kept stands in `SKEINO_*` variables. What a way
does not need is not imported: it would count in its memory.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

CLOCK = "/clock/"
"""Paths below it are for whoever measures, and no runs."""

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
Step = Callable[[int], Awaitable[None]]


class Endpoints:
    """The endpoints; a way sets what is its own."""

    def __init__(self) -> None:
        self.graph: Any = None
        self.config_of: Callable[[Request], Any] = lambda request: {
            "configurable": {"thread_id": request.headers["x-thread-id"]}
        }
        self.settled: Callable[[], Awaitable[object]] = nothing
        self.held = 0
        self.released = asyncio.Event()

    def application(self, lifespan: Lifespan | None = None, *middleware: Middleware) -> Starlette:
        routes = [
            Route("/ok", self.answer_ok, methods=["POST"]),
            Route("/graph", self.run_graph, methods=["POST"]),
            Route("/held", self.hold, methods=["POST"]),
            Route(f"{CLOCK}settled", self.settle),
            Route(f"{CLOCK}renewed", self.renew),
            Route(f"{CLOCK}held", self.count_held),
            Route(f"{CLOCK}release", self.release),
        ]
        return Starlette(routes=routes, lifespan=lifespan, middleware=middleware)

    async def answer_ok(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def run_graph(self, request: Request) -> Response:
        return JSONResponse(await self.graph.ainvoke({"words": ["first"]}, self.config_of(request)))

    async def hold(self, request: Request) -> Response:
        self.held += 1
        await self.released.wait()
        self.held -= 1
        return PlainTextResponse("ok")

    async def settle(self, request: Request) -> Response:
        """Nothing is left to write."""
        await self.settled()
        return PlainTextResponse("ok")

    async def renew(self, request: Request) -> Response:
        """What a saver in memory keeps is dropped, lest it slow down whatever comes later, and garbage is collected."""
        if "langgraph.checkpoint.memory" in sys.modules and self.graph is not None:
            from langgraph.checkpoint.memory import InMemorySaver

            if isinstance(saver := self.graph.checkpointer, InMemorySaver):
                for kept in (saver.storage, saver.writes, saver.blobs):
                    kept.clear()
        gc.collect()
        return PlainTextResponse("ok")

    async def count_held(self, request: Request) -> Response:
        return PlainTextResponse(str(self.held))

    async def release(self, request: Request) -> Response:
        self.released.set()
        self.released = asyncio.Event()
        return PlainTextResponse("ok")


async def nothing() -> None:
    pass


# ── The ways ─────────────────────────────────────────────────────────────────────────────────────────────


def bare() -> ASGIApp:
    """No run, no graph."""
    return Endpoints().application()


def untracked() -> ASGIApp:
    """No run; the graph's state is in memory."""
    from langgraph.checkpoint.memory import InMemorySaver

    from benchmarks.graphs import three_nodes

    endpoints = Endpoints()
    endpoints.graph = three_nodes(InMemorySaver())
    return endpoints.application()


def skeino() -> ASGIApp:
    """As the README says, native to Starlette."""
    from benchmarks.graphs import three_nodes
    from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans

    endpoints = Endpoints()
    tracker = RunTracker()
    endpoints.settled = tracker.settled
    endpoints.config_of = lambda request: request.state.run.config

    @asynccontextmanager
    async def compiled(app: Any) -> AsyncIterator[None]:
        endpoints.graph = three_nodes(tracker.checkpointer)
        yield

    lifespan = combine_lifespans(tracker.lifespan, compiled)
    return endpoints.application(lifespan, Middleware(RunMiddleware, tracker=tracker, exclude=[f"{CLOCK}*"]))


def by_hand(*, five: bool = False) -> ASGIApp:
    """In PostgreSQL, with a connection for a run's start and one for its finish, or for each of five operations; and
    LangGraph's own saver on a pool.
    """
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg.rows import dict_row

    from benchmarks.graphs import three_nodes
    from benchmarks.plain_postgres import FIVE_OPERATIONS, TWO_TRANSACTIONS, connecting, pool_of, steps
    from skeino import SkeinoSettings

    endpoints = Endpoints()
    dsn = str(SkeinoSettings().checkpointer_uri)

    @asynccontextmanager
    async def opened(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            pool = pool_of(dsn, autocommit=True, prepare_threshold=0, row_factory=dict_row)
            endpoints.graph = three_nodes(AsyncPostgresSaver(await stack.enter_async_context(pool)))
            yield

    class Tracking:
        """The start before the endpoint, the finish after it."""

        def __init__(self, app: ASGIApp, *, start: Step, finish: Step) -> None:
            self.app = app
            self.start = start
            self.finish = finish
            self.unfinished = 0
            endpoints.settled = self.settled

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"].startswith(CLOCK):
                await self.app(scope, receive, send)
                return
            self.unfinished += 1
            number = int(dict(scope["headers"])[b"x-thread-id"].rpartition(b"-")[2])
            try:
                await self.start(number)
                await self.app(scope, receive, send)
                await self.finish(number)
            finally:
                self.unfinished -= 1

        async def settled(self) -> None:
            while self.unfinished:
                await asyncio.sleep(0.001)

    tracking = steps(connecting(dsn), FIVE_OPERATIONS if five else TWO_TRANSACTIONS)
    return endpoints.application(opened, Middleware(Tracking, **tracking))


WAYS: dict[str, Callable[[], ASGIApp]] = {
    "bare": bare,
    "untracked": untracked,
    "skeino": skeino,
    "by hand": by_hand,
    "five operations": partial(by_hand, five=True),
}


def main(way: str, port: int) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    uvicorn.run(
        WAYS[way],
        factory=True,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
    )


def _end_with_the_parent() -> None:
    """However the parent ends, its end of the pipe is closed."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
