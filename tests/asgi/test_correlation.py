"""What ties a run to the rest of a system: request ids, traces, log lines; and a failure that the response hides."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from skeino import ConfigurationError, InvalidInputError, SkeinoSettings
from skeino_asgi import RunLogFilter, RunMiddleware, add_run_context
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


async def row_after(app: Any, headers: Any, settings: SkeinoSettings | None = None, **options: Any) -> Any:
    wrapped = RunMiddleware(app, settings=settings or SkeinoSettings(), **options)
    async with connected(wrapped) as client:
        await client.post("/", headers=headers)
        (run,) = await store_of(wrapped).search_runs()
        return await ended(store_of(wrapped), run["run_id"])


async def test_a_requests_id_and_trace_are_kept_and_found(settings: SkeinoSettings) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = scope["state"]["run"]
        seen.append((run.request_id, run.traceparent, run.trace_id))
        run.metadata["model"] = "fake"
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        headers = {"X-Request-ID": "req-1", "traceparent": TRACEPARENT}
        response = await client.post("/", headers=headers)
        await ended(store_of(wrapped), response.headers["x-run-id"])
        await client.post("/", headers={"X-Request-ID": "req-2"})
        (by_request,) = await store_of(wrapped).search_runs(metadata={"request_id": "req-1"})
        (by_trace,) = await store_of(wrapped).search_runs(metadata={"trace_id": TRACE})
    assert by_request["run_id"] == by_trace["run_id"] == response.headers["x-run-id"]
    assert by_request["metadata"] == {"request_id": "req-1", "trace_id": TRACE, "model": "fake"}
    assert by_request["kwargs"] == {"method": "POST", "path": "/", "traceparent": TRACEPARENT}
    assert seen == [("req-1", TRACEPARENT, TRACE), ("req-2", None, None)]


@pytest.mark.parametrize("value", ["", "two words", "a" * 129, "line\tbreak", 'quo"te', "é"])
async def test_a_malformed_request_id_is_ignored(value: str) -> None:
    row = await row_after(answering(), [(b"x-request-id", value.encode())])
    assert (row["status"], row["metadata"]) == ("success", {})


@pytest.mark.parametrize(
    "value",
    [
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"{TRACEPARENT}-extra",  # a later version may have more, this one not
        f"{TRACEPARENT}x",
        "nonsense",
    ],
)
async def test_a_malformed_trace_context_is_ignored(value: str) -> None:
    assert (await row_after(answering(), {"traceparent": value}))["metadata"] == {}


async def test_a_trace_context_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    row = await row_after(answering(), {"traceparent": f"01-{TRACE}-00f067aa0ba902b7-01-more"})
    assert row["kwargs"]["traceparent"] == f"01-{TRACE}-00f067aa0ba902b7-01"


async def test_repeated_headers_are_ignored() -> None:
    twice = [(b"x-request-id", b"a"), (b"x-request-id", b"b"), (b"traceparent", TRACEPARENT.encode())] * 2
    assert (await row_after(answering(), twice))["metadata"] == {}


async def test_the_headers_name_can_be_chosen_or_left_out() -> None:
    headers = {"X-Request-ID": "a", "X-Correlation-ID": "b"}
    assert (await row_after(answering(), headers, request_id_header="X-Correlation-ID"))["metadata"] == {
        "request_id": "b"
    }
    assert (await row_after(answering(), headers, request_id_header=None))["metadata"] == {}


async def test_a_run_within_a_request_has_the_requests_ids() -> None:
    inner: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        async with wrapped.tracker.run() as run:
            inner.append((run.request_id, run.trace_id))
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    async with connected(wrapped) as client:
        await client.post("/", headers={"X-Request-ID": "req-1", "traceparent": TRACEPARENT})
        assert len(await store_of(wrapped).search_runs(metadata={"trace_id": TRACE})) == 2
    assert inner == [("req-1", TRACE)]


# ── Logs ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_log_records_have_the_ids(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["state"]["run"])
        logging.getLogger("app").warning("inside")
        await answering()(scope, receive, send)

    with caplog.filtering(RunLogFilter()):
        await row_after(app, {"X-Thread-ID": "t1", "X-Request-ID": "req-1"})
        logging.getLogger("app").warning("outside")
    inside, outside = (record for record in caplog.records if record.name == "app")
    assert [getattr(inside, name) for name in ("run_id", "thread_id", "request_id")] == [runs[0].run_id, "t1", "req-1"]
    assert [getattr(outside, name) for name in ("run_id", "thread_id", "request_id")] == ["-", "-", "-"]


async def test_structlogs_events_have_the_ids() -> None:
    captured = structlog.testing.LogCapture()
    log = structlog.wrap_logger(None, processors=[add_run_context, captured])
    runs: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["state"]["run"])
        log.info("inside", thread_id="my own")
        await answering()(scope, receive, send)

    await row_after(app, {"X-Thread-ID": "t1", "X-Request-ID": "req-1"})
    log.info("outside")
    inside, outside = captured.entries
    assert inside["run_id"] == runs[0].run_id
    assert (inside["thread_id"], inside["request_id"]) == ("my own", "req-1")
    assert set(outside) == {"event", "log_level"}


# ── OpenTelemetry ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spans() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def server_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = (span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER)
    return span


@pytest.mark.parametrize("minted", [False, True])
async def test_the_servers_span_says_which_conversation_and_run_it_was(
    spans: tuple[TracerProvider, InMemorySpanExporter], minted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    provider, exporter = spans

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await compiled(scope["state"]["checkpointer"]).ainvoke({"words": ["a"]}, scope["state"]["run"].config)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    traced = OpenTelemetryMiddleware(wrapped, tracer_provider=provider)
    async with wrapped.tracker.lifespan(), connected(traced) as client:
        headers = {"traceparent": TRACEPARENT} | ({} if minted else {"X-Thread-ID": "t1"})
        response = await client.post("/", headers=headers)
        row = await ended(store_of(wrapped), response.headers["x-run-id"])
    span = server_span(exporter)
    assert span.attributes is not None
    assert span.attributes["gen_ai.conversation.id"] == (response.headers["x-thread-id"] if minted else "t1")
    assert span.attributes["skeino.run.id"] == row["run_id"]
    assert span.context is not None
    parent = f"00-{TRACE}-{span.context.span_id:016x}-01"  # the row leads to this very span, not to the client's
    assert row["kwargs"]["traceparent"] == parent
    assert [record.message for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_a_span_without_a_response_has_them_too(spans: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = spans

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["run"].thread_id = "chosen"
        raise RuntimeError("no")

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    traced = OpenTelemetryMiddleware(wrapped, tracer_provider=provider)
    async with wrapped.tracker.lifespan(), connected(traced) as client:
        await client.post("/")
    attributes = server_span(exporter).attributes
    assert attributes is not None
    assert attributes["gen_ai.conversation.id"] == "chosen"


# ── run.fail() ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reason", "status", "code", "kind", "message"),
    [
        ("the model is away, password=hunter2", "error", "reported", None, "the model is away, password=[hidden]"),
        (RuntimeError("no"), "error", "exception", "RuntimeError", "as the application reported: no"),
        (TimeoutError("slow"), "timeout", "timeout", "TimeoutError", "as the application reported: slow"),
    ],
)
async def test_a_run_can_fail_though_its_stream_is_well_formed(
    settings: SkeinoSettings, reason: Any, status: str, code: str, kind: str | None, message: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = scope["state"]["run"]
        run.fail(reason)
        run.fail("a later reason")
        assert run.status == "running"
        await answering()(scope, receive, send)

    row = await row_after(app, {"X-Thread-ID": "t1"}, settings)
    assert (row["status"], row["http_status"]) == (status, 200)
    assert row["error"] == {"code": code, "type": kind, "message": message}


@pytest.mark.parametrize("reason", [None, "", "  ", {"code": 1}, 7])
async def test_a_failure_says_what_went_wrong(reason: Any) -> None:
    wrapped = RunMiddleware(answering(), settings=SkeinoSettings())
    async with wrapped.tracker.lifespan(), wrapped.tracker.run() as run:
        with pytest.raises(InvalidInputError, match="a sentence"):
            run.fail(reason)
        assert run.failure is None


async def test_a_failure_that_comes_after_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = RunMiddleware(answering(), settings=SkeinoSettings())
    async with wrapped.tracker.lifespan(), wrapped.tracker.run() as run:
        pass
    run.fail("too late")
    assert f"after the end of run {run.run_id}" in caplog.text


@pytest.mark.parametrize("name", ["", "X-\u0416", "X-\u00dcni", "X Request", "X-Request-ID:"])
def test_a_header_that_has_no_headers_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="request_id_header"):
        RunMiddleware(answering(), settings=SkeinoSettings(), request_id_header=name)


async def test_an_exception_that_is_raised_after_all_counts_more() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["run"].fail("the model is away")
        raise ValueError("worse")

    row = await row_after(app, {})
    assert (row["error"]["type"], row["error"]["message"]) == ("ValueError", "before the response: worse")


async def test_a_run_of_a_worker_can_fail_without_raising(settings: SkeinoSettings) -> None:
    wrapped = RunMiddleware(answering(), settings=settings)
    async with connected(wrapped):
        async with wrapped.tracker.run(thread_id="t1") as run:
            run.fail("the queue is empty")
        row = await store_of(wrapped).get_run(run.run_id)
    assert row is not None
    assert row["error"] is not None
    assert (row["status"], row["error"]["message"]) == ("error", "the queue is empty")
