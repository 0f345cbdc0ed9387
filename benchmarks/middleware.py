"""What a middleware adds to a request, measured in the process, without a server.

The application sends two messages and does nothing else. A request is the call of the outermost application with a new
scope, as a server makes it, one after the other on one event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.measuring import Work, interleaved
from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware

HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"curl/8.5.0"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"0"),
]

VARIANTS = {
    "bare application": "",
    "RunMiddleware, an excluded path": "`exclude=`: the request has the state and no run",
    "RunMiddleware, without a store write": 'memory, `record="on_use"`, and the request does not use its run',
    "asgi-correlation-id": "its defaults",
    "RunMiddleware, recorded": "memory; both writes are done when the clock stops",
    "OpenTelemetry": "`OpenTelemetryMiddleware` with a tracer provider that exports nothing",
    "BaseHTTPMiddleware": "Starlette's, with a dispatch function that calls the next and nothing else",
}
"""Each variant, and what it is."""


async def measure(rounds: int, times: int, after_round: Callable[[], object]) -> dict[str, Any]:
    """The figures of all variants."""
    async with AsyncExitStack() as stack:
        works = await work_of_variants(stack)
        figures = await interleaved(works, rounds=rounds, times=times, after_round=after_round)
    return {name: figure.as_json() for name, figure in figures.items()}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    bare = figures["bare application"]["median"]
    lines = [
        "| | µs per request | quartiles | above bare | |",
        "|---|---|---|---|---|",
    ]
    for name, figure in figures.items():
        above = figure["median"] - bare
        lines.append(
            f"| {name} | {figure['median']:.1f} | {figure['low']:.1f} – {figure['high']:.1f} | "
            f"{above:.1f} | {VARIANTS[name]} |"
        )
    return "\n".join(lines)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "ok"; makes its messages anew, for asgi-correlation-id changes them."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


async def work_of_variants(stack: AsyncExitStack) -> dict[str, Work]:
    """The variants, ready to be measured; what they opened is closed with the stack."""

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    excluded = RunMiddleware(application, settings=SkeinoSettings(), exclude=["/excluded"])
    await stack.enter_async_context(excluded.tracker.lifespan())
    unused = RunMiddleware(application, settings=SkeinoSettings(), record="on_use")
    await stack.enter_async_context(unused.tracker.lifespan())
    recorded = RunMiddleware(application, settings=SkeinoSettings())
    await stack.enter_async_context(recorded.tracker.lifespan())
    telemetry = OpenTelemetryMiddleware(application, tracer_provider=TracerProvider())

    works = (
        _requests(application),
        _requests(excluded, "/excluded"),
        _requests(unused),
        _requests(CorrelationIdMiddleware(application)),
        _recorded_requests(recorded),
        _requests(telemetry),
        _requests(BaseHTTPMiddleware(application, dispatch=passing)),
    )
    return dict(zip(VARIANTS, works, strict=True))


def _requests(app: ASGIApp, path: str = "/chat") -> Work:
    async def work(times: int) -> None:
        for _ in range(times):
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "POST",
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "scheme": "http",
                "root_path": "",
                "headers": HEADERS,
                "server": ("127.0.0.1", 8000),
                "client": ("127.0.0.1", 50000),
                "state": {},
            }
            await app(scope, _receive, _send)

    return work


def _recorded_requests(app: RunMiddleware) -> Work:
    requests = _requests(app)

    async def work(times: int) -> None:
        await requests(times)
        await app.tracker.settled()

    return work


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    pass
