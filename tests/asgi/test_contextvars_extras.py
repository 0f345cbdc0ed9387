"""A code base that keeps its context in a registry of contextvars-extras sees the current run through it."""

import asyncio
from typing import Any

from contextvars_extras import ContextVarDescriptor, ContextVarsRegistry
from langgraph.graph import START, StateGraph
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from skeino import SkeinoSettings, current_run
from skeino.runs import current_run_var
from skeino_asgi import RunMiddleware, RunTracker
from tests.http_client import httpx
from tests.savers.graphs import State, said


class Context(ContextVarsRegistry):  # type: ignore[misc]
    """What such a code base has: its own variables beside ours."""

    run = ContextVarDescriptor.from_existing_var(current_run_var)
    locale: str = "en"


context = Context()


async def test_the_registry_has_the_run_of_each_request_and_of_its_graph() -> None:
    def in_a_node(state: State) -> State:  # LangGraph calls it in a thread
        return said(f"{context.run.run_id} {context.locale}")

    builder = StateGraph(State)
    builder.add_node("node", in_a_node)
    builder.add_edge(START, "node")

    async def show(request: Request) -> JSONResponse:
        graph: Any = builder.compile(checkpointer=request.state.checkpointer)
        with context(locale=request.query_params["locale"]):
            await asyncio.sleep(0.02)
            result = await graph.ainvoke(said("hello"), request.state.run.config)
            assert context.run is current_run() is request.state.run
        return JSONResponse({"node": result["messages"][-1], "locale": context.locale})

    tracker = RunTracker(SkeinoSettings())
    app = RunMiddleware(Starlette(routes=[Route("/", show, methods=["POST"])]), tracker=tracker)
    async with tracker.lifespan():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            locales = ["de", "fr", "it"]
            answers = await asyncio.gather(*(client.post(f"/?locale={locale}") for locale in locales))
    for locale, answer in zip(locales, answers, strict=True):
        assert answer.json() == {"node": f"{answer.headers['X-Run-ID']} {locale}", "locale": "en"}
    assert len({answer.headers["X-Run-ID"] for answer in answers}) == 3
    assert context.run is None


async def test_the_registry_sees_a_run_that_is_no_request() -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        async with tracker.run(thread_id="t") as run:
            assert dict(context) == {"run": run, "locale": "en"}
        assert context.run is None
