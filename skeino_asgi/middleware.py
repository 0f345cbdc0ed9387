"""`RunMiddleware`: a request comes in, a run with its outcome goes out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from starlette.requests import HTTPConnection

from skeino.errors import ConfigurationError, InvalidInputError, StoreError, StoreUnavailableError
from skeino.persistence.access import allow_read
from skeino.runs import Run, current_run_var, guard_var
from skeino.scrubbing import scrubbed
from skeino.settings import SkeinoSettings
from skeino.validation import validate_id, validate_thread_id
from skeino_asgi.correlation import (
    current_span,
    describe_span,
    header_name,
    traceparent_of,
    valid_request_id,
    valid_traceparent,
)
from skeino_asgi.disconnect import serve_until_the_client_leaves
from skeino_asgi.exchange import HttpExchange
from skeino_asgi.lifespan import run_lifespan
from skeino_asgi.opening import Opening
from skeino_asgi.paths import PathChoice, compiled_template, path_below_root, predicate_of
from skeino_asgi.refusal import REFUSALS, refuse
from skeino_asgi.tracker import RunTracker, refuse_owners_that_are_forgotten
from skeino_asgi.websocket import WebSocketExchange

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("skeino")

THREAD_HEADER: Final = b"x-thread-id"
TRACE_HEADER: Final = b"traceparent"
UNTRACKED_METHODS: Final = frozenset({"HEAD", "OPTIONS"})
READING_METHODS: Final = frozenset({"GET", "DELETE"})
"""They create no thread, and do not make it busy."""
USUAL_METHODS: Final = READING_METHODS | {"POST", "PUT", "PATCH"}

_SCOPE_KEY: Final = "skeino.middleware"  # in the scope: the one that has seen the request already

Resolver = Callable[[HTTPConnection], "Awaitable[str | None] | str | None"]
AnyApp = Callable[[Any, Any, Any], Awaitable[Any]]
"""An ASGI application; each framework has types of its own for what it is called with."""

Headers = dict[bytes, bytes | None]
"""Those that the middleware reads; None for one that stands twice."""


class RunMiddleware:
    """Makes every request a run, around any ASGI application, its lifespan included.

    Native to a framework, it shares a tracker with the application's lifespan: pass `tracker=`. Where one stands within
    another, a request is one run, the outer one's, whose arguments count.

    Args:
        app: the application.
        settings: where state and runs are kept; default `SkeinoSettings()`.
        tracker: instead of `settings`, a tracker that others use, too.
        thread_id: finds a request's thread id: `lambda connection: connection.query_params.get("thread")`;
            may be async. Default: the path, if `thread_path` is given, else the header `X-Thread-ID`.
        thread_path: a path template that names the thread, `"/threads/{thread_id}"`; what follows it in the
            path does not matter. It is matched here, below `root_path`, before any routing.
        owner: finds whose request it is, a tenant or a user; may be async, and may raise Starlette's
            `HTTPException(401)`. A thread of another owner is answered with 404, to HEAD requests and WebSockets,
            too; excluded paths are not guarded. Without it, whoever knows a thread's id reads it.
        include: track these paths only: paths, `"/api/*"` for all below one, or a predicate of the scope.
        exclude: do not track these (health checks, static files). Their handlers get the state and no run.
        claim: the requests (as `include`) that claim their thread before their handler starts, where it is known then;
            a busy one is answered with 409. Others, GET and DELETE too, claim it when their graph first loads it.
        record: `"always"`: a run's row is committed before the handler starts. `"on_use"`: before its graph first
            reads or writes, or at the end, if the handler used the run in another way (took its config, added
            metadata, called `fail()`). A request that does neither leaves no row, though its answer has `X-Run-ID`.
        on_disconnect: when the client leaves before the response is complete, `"continue"` lets the handler finish,
            `"cancel"` cancels it (LangGraph's words) once that is noticed; docs/endings.md says what is not. WebSockets
            are left to their handlers.
        track_websockets: make each WebSocket connection a run, from its first message to its end. Without it,
            `tracker.run()` makes one of whatever it encloses, a message say.
        request_id_header: the header with the id that the client, or a proxy, gave the request; kept with the run as
            `request_id`. None reads none.

    Raises:
        ConfigurationError: the arguments contradict each other.
    """

    def __init__(
        self,
        app: AnyApp,
        *,
        settings: SkeinoSettings | None = None,
        tracker: RunTracker | None = None,
        thread_id: Resolver | None = None,
        thread_path: str | None = None,
        owner: Resolver | None = None,
        include: PathChoice | None = None,
        exclude: PathChoice = (),
        claim: PathChoice | None = None,
        record: Literal["always", "on_use"] = "always",
        on_disconnect: Literal["continue", "cancel"] = "continue",
        track_websockets: bool = False,
        request_id_header: str | None = "X-Request-ID",
    ) -> None:
        if settings is not None and tracker is not None:
            raise ConfigurationError("RunMiddleware takes settings or a tracker, not both: the tracker has its own.")
        shared: object = tracker
        if shared is not None and not isinstance(shared, RunTracker):
            raise ConfigurationError(
                f"tracker must be a RunTracker, not {type(shared).__name__}: RunTracker(settings)."
            )
        for name, resolver in (("thread_id", thread_id), ("owner", owner)):
            if resolver is not None and not callable(resolver):
                raise ConfigurationError(
                    f"{name} must be a callable that takes an HTTPConnection, not {type(resolver).__name__}: "
                    f"{name}=lambda connection: connection.headers.get('x-…')."
                )
        for name, value, known in (
            ("record", record, ("always", "on_use")),
            ("on_disconnect", on_disconnect, ("continue", "cancel")),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} must be {known[0]!r} or {known[1]!r}, not {value!r}.")
        self.app = app
        self.tracker = tracker if tracker is not None else RunTracker(settings)
        self._openings = self.tracker.openings
        if owner is not None and self.tracker.settings.on_store_error != "reject":
            raise ConfigurationError(
                "owner= needs on_store_error='reject': a request that is served without the store is served without "
                "knowing whose the threads are."
            )
        if owner is not None:
            refuse_owners_that_are_forgotten(self.tracker.settings)
        if record == "on_use" and self.tracker.settings.on_store_error != "reject":
            raise ConfigurationError(
                "record='on_use' needs on_store_error='reject': when its graph first finds the store away, a request "
                "can no longer be served without a run."
            )
        self._thread_id = thread_id
        self._thread_path = None if thread_path is None else compiled_template(thread_path)
        self._owner = owner
        self._is_included = None if include is None else predicate_of(include, "include")
        self._is_excluded = predicate_of(exclude, "exclude") if exclude else None
        self._claims_first = None if claim is None else predicate_of(claim, "claim")
        self._chooses = include is not None or self._is_excluded is not None
        self._records_on_use = record == "on_use"
        self._cancels = on_disconnect == "cancel"
        self._tracks_websockets = track_websockets
        self._request_id_header = b"" if request_id_header is None else header_name(request_id_header)
        self._headers = frozenset({THREAD_HEADER, TRACE_HEADER, self._request_id_header} - {b""})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self.app, self.tracker, scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if (outer := scope.get(_SCOPE_KEY)) is not None and not self._guards_within(outer, scope):
            await self.app(scope, receive, send)
            return
        scope[_SCOPE_KEY] = self
        is_run = scope["method"] not in UNTRACKED_METHODS if kind == "http" else self._tracks_websockets
        # Always set, to None as well: servers start a keep-alive connection's next request in the last one's context.
        token = current_run_var.set(None)
        if guard_var.get() is not None:
            guard_var.set(None)
        try:
            if self._chooses and not self._is_chosen(scope):
                await self._serve_untracked(scope, receive, send)
            elif is_run:
                await self._track(scope, receive, send)
            elif self._owner is not None:
                await self._guard(scope, receive, send)
            else:
                await self._serve_untracked(scope, receive, send)
        finally:
            current_run_var.reset(token)

    async def _track(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = current_span()
        try:
            opening = self._openings.already() or await self._openings.ready()
            headers = self._headers_of(scope)
            owner = thread_id = None
            if self._owner is not None or self._thread_id is not None:
                owner, thread_id = await self._asked(scope, headers)
            elif headers or self._thread_path is not None:
                thread_id = self._thread_named(scope, headers)
            claims_first = self._claims_first is not None and self._claims_first(scope)
            state = _state(scope, opening.state, None)
            run = self._begin(opening, scope, headers, owner, thread_id, span)  # from here on it has to be ended
            if not self._records_on_use:
                await opening.write_row(run)
            elif self._owner is not None:
                await opening.admit(run)
            if claims_first and run.thread_id is not None and run.creates_thread:
                await opening.claim(run, run.thread_id)
        except REFUSALS as exc:
            if isinstance(exc, StoreUnavailableError) and self.tracker.settings.on_store_error == "untracked":
                logger.warning("A request is served without a run: %s", exc)
                await self._serve_untracked(scope, receive, send)
            else:
                await refuse(scope, send, exc)
            return
        state["run"] = run
        scope["state"] = state
        current_run_var.set(run)
        exchange = (
            WebSocketExchange(run, receive, send)
            if scope["type"] == "websocket"
            else HttpExchange(run, receive, send, span)
        )
        try:
            if self._cancels and isinstance(exchange, HttpExchange):
                await serve_until_the_client_leaves(self.app, scope, exchange)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except BaseException as exc:
            answered = False
            try:
                answered = isinstance(exchange, HttpExchange) and await exchange.answer_conflict(exc)
            finally:
                opening.finish(run, exchange.outcome(exc))
            if not answered:
                raise
        else:
            opening.finish(run, exchange.outcome(None))
        finally:
            if span is not None:
                describe_span(span, run)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a HEAD or OPTIONS request, or a WebSocket: no run, but another owner's thread is not found here either.

        OPTIONS, by which a browser asks what it may send, has no credentials, and so nobody's name.
        """
        anybody = scope.get("method") == "OPTIONS"
        try:
            opening = self._openings.already() or await self._openings.ready()
            owner, thread_id = (None, None) if anybody else await self._asked(scope, self._headers_of(scope))
            guard = Run(owner=owner, store=opening.persistence.metadata_store, guarded=True)
            if thread_id is not None:
                await allow_read(guard, thread_id)
        except REFUSALS as exc:
            if anybody:  # there is nothing open that could be read
                await self._serve_untracked(scope, receive, send)
            else:
                await refuse(scope, send, exc)
            return
        token = guard_var.set(guard)
        try:
            await self._serve_untracked(scope, receive, send)
        finally:
            guard_var.reset(token)

    def _guards_within(self, outer: RunMiddleware, scope: Scope) -> bool:
        """Whether a request that another one has seen must be asked for its owner here.

        Raises:
            ConfigurationError: that one has made it a run of nobody's already, or of another place.
        """
        if self.tracker is not outer.tracker and self.tracker.settings != outer.tracker.settings:
            raise ConfigurationError(
                "A RunMiddleware stands within another one with other settings: share one tracker, or leave one out."
            )
        if self._owner is None or outer._owner is not None:
            return False
        if scope["state"]["run"] is not None:
            raise ConfigurationError(
                "A RunMiddleware with owner= stands within one that has none and has let the request pass: give owner= "
                "to the outer one, or leave that out."
            )
        return True

    async def _serve_untracked(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            state = (self._openings.already() or await self._openings.ready()).state
        except StoreError:
            state = {}
        scope["state"] = _state(scope, state, None)
        await self.app(scope, receive, send)

    def _begin(
        self, opening: Opening, scope: Scope, headers: Headers, owner: str | None, thread_id: str | None, span: Any
    ) -> Run:
        request_id = traceparent = None
        if headers:
            request_id = valid_request_id(headers.get(self._request_id_header))
            traceparent = valid_traceparent(headers.get(TRACE_HEADER))
        if span is not None:
            traceparent = traceparent_of(span)
        method = scope.get("method", "WEBSOCKET")
        path = path_below_root(scope) if scope.get("root_path") else scope["path"]
        run = opening.begin(
            thread_id,
            owner,
            self._owner is not None,
            method not in READING_METHODS,
            request_id,
            traceparent,
            lambda: _description(method, path),
        )
        if span is not None:
            describe_span(span, run)
        return run

    async def _asked(self, scope: Scope, headers: Headers) -> tuple[str | None, str | None]:
        """The owner and the thread, where the application is asked for one of them."""
        connection = HTTPConnection(scope)
        owner = await self._owner_of(connection)
        if self._thread_id is None:
            return owner, self._thread_named(scope, headers)
        thread_id = await _resolved(self._thread_id, connection, "thread_id")
        return owner, None if thread_id is None else validate_thread_id(thread_id)

    def _headers_of(self, scope: Scope) -> Headers:
        found: Headers = {}
        for name, value in scope["headers"]:
            if name in self._headers:
                found[name] = None if name in found else value
        return found

    async def _owner_of(self, connection: HTTPConnection) -> str | None:
        owner = None if self._owner is None else await _resolved(self._owner, connection, "owner")
        return None if owner is None else validate_id(owner, "owner")

    def _thread_named(self, scope: Scope, headers: Headers) -> str | None:
        if self._thread_path is not None and (match := self._thread_path.match(path_below_root(scope))):
            return validate_thread_id(match["thread_id"])
        if THREAD_HEADER not in headers:
            return None
        if (given := headers[THREAD_HEADER]) is None:
            raise InvalidInputError("The header X-Thread-ID stands twice: send it once.")
        try:
            return validate_thread_id(given.decode())
        except UnicodeDecodeError:
            raise InvalidInputError("The header X-Thread-ID is not UTF-8.") from None

    def _is_chosen(self, scope: Scope) -> bool:
        return (self._is_included is None or self._is_included(scope)) and not (
            self._is_excluded is not None and self._is_excluded(scope)
        )


def _state(scope: Scope, opened: dict[str, Any], run: Run | None) -> dict[str, Any]:
    """The request's own state: a copy, since some servers and test clients hand the same one to every request."""
    given = scope.get("state")
    state = {**given, **opened} if given else opened.copy()
    state["run"] = run
    return state


async def _resolved(resolver: Resolver, connection: HTTPConnection, name: str) -> str | None:
    found = resolver(connection)
    found = await found if inspect.isawaitable(found) else found
    if found is not None and not isinstance(found, str):  # no client's mistake
        raise ConfigurationError(f"{name}= must give a string or None, not {type(found).__name__}.")
    return found


def _description(method: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's row keeps of its request."""
    if method not in USUAL_METHODS:
        method = scrubbed(method, limit=20)
    return {}, {"method": method, "path": scrubbed(path, limit=1000)}
