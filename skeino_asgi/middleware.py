"""`RunMiddleware`: a request comes in, a run with its outcome goes out."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from skeino.errors import (
    ConfigurationError,
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
    ThreadNotFoundError,
)
from skeino.runs import Run, current_run_var, guard_var
from skeino.scrubbing import scrubbed
from skeino.settings import SkeinoSettings
from skeino.validation import validate_id, validate_thread_id
from skeino_asgi.lifespan import run_lifespan
from skeino_asgi.opening import Opening
from skeino_asgi.outcome import HttpExchange
from skeino_asgi.tracker import RunTracker, refuse_owners_that_are_forgotten

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("skeino")

THREAD_HEADER: Final = b"x-thread-id"
UNTRACKED_METHODS: Final = frozenset({"HEAD", "OPTIONS"})
READING_METHODS: Final = frozenset({"GET", "DELETE"})
"""They create no thread, and do not make it busy."""
RETRY_AFTER_SECONDS: Final = 1

_SCOPE_KEY: Final = "skeino.run"  # in the scope of a request that a RunMiddleware has seen already

Resolver = Callable[[HTTPConnection], "Awaitable[str | None] | str | None"]
PathChoice = Collection[str] | Callable[["Scope"], bool]


class RunMiddleware:
    """Makes every request a run, around any ASGI application, its lifespan included.

    Native to a framework, it shares a tracker with the application's lifespan: pass `tracker=`.

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

    Raises:
        ConfigurationError: the arguments contradict each other.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: SkeinoSettings | None = None,
        tracker: RunTracker | None = None,
        thread_id: Resolver | None = None,
        thread_path: str | None = None,
        owner: Resolver | None = None,
        include: PathChoice | None = None,
        exclude: PathChoice = (),
    ) -> None:
        if settings is not None and tracker is not None:
            raise ConfigurationError("RunMiddleware takes settings or a tracker, not both: the tracker has its own.")
        self.app = app
        self.tracker = tracker if tracker is not None else RunTracker(settings)
        if owner is not None and self.tracker.settings.on_store_error != "reject":
            raise ConfigurationError(
                "owner= needs on_store_error='reject': a request that is served without the store is served without "
                "knowing whose the threads are."
            )
        if owner is not None:
            refuse_owners_that_are_forgotten(self.tracker.settings)
        self._thread_id = thread_id
        self._thread_path = None if thread_path is None else _compiled(thread_path)
        self._owner = owner
        self._is_included = None if include is None else _predicate(include, "include")
        self._is_excluded = _predicate(exclude, "exclude") if exclude else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self.app, self.tracker, scope, receive, send)
            return
        if kind not in ("http", "websocket") or _SCOPE_KEY in scope:
            await self.app(scope, receive, send)
            return
        scope[_SCOPE_KEY] = None
        # Always set, to None as well: servers start a keep-alive connection's next request in the last one's context.
        token, guard_token = current_run_var.set(None), guard_var.set(None)
        try:
            if not self._is_chosen(scope):
                await self._serve_untracked(scope, receive, send)
            elif kind == "http" and scope["method"] not in UNTRACKED_METHODS:
                await self._track(scope, receive, send)
            elif self._owner is not None and scope.get("method") != "OPTIONS":
                await self._guard(scope, receive, send)
            else:
                await self._serve_untracked(scope, receive, send)
        finally:
            guard_var.reset(guard_token)
            current_run_var.reset(token)

    async def _track(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            opening = await self.tracker.ready()
            run = await self._start(opening, scope)
        except (InvalidInputError, ThreadNotFoundError, StoreError, HTTPException) as exc:
            if isinstance(exc, StoreUnavailableError) and self.tracker.settings.on_store_error == "untracked":
                logger.warning("A request is served without a run: %s", exc)
                await self._serve_untracked(scope, receive, send)
            else:
                await _refuse(scope, send, exc)
            return
        exchange = HttpExchange(run, receive, send)
        scope[_SCOPE_KEY] = run
        scope["state"] = {**(scope.get("state") or {}), **opening.state, "run": run}
        current_run_var.set(run)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as exc:
            opening.finish(run, exchange.outcome(exc))
            raise
        opening.finish(run, exchange.outcome(None))

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a HEAD request or a WebSocket: no run, but another owner's thread is not found here either."""
        try:
            opening = await self.tracker.ready()
            connection = HTTPConnection(scope)
            guard = Run(owner=await self._owner_of(connection), store=opening.persistence.metadata_store, guarded=True)
            if (thread_id := await self._thread_of(scope, connection)) is not None:
                await guard.allow_read(thread_id)
        except (InvalidInputError, ThreadNotFoundError, StoreError, HTTPException) as exc:
            await _refuse(scope, send, exc)
            return
        guard_var.set(guard)
        await self._serve_untracked(scope, receive, send)

    async def _serve_untracked(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            state = (await self.tracker.ready()).state
        except StoreError:
            state = {}
        scope["state"] = {**(scope.get("state") or {}), **state, "run": None}
        await self.app(scope, receive, send)

    async def _start(self, opening: Opening, scope: Scope) -> Run:
        connection = HTTPConnection(scope) if self._owner is not None or self._thread_id is not None else None
        owner = None if self._owner is None or connection is None else await self._owner_of(connection)
        method = scope["method"]
        return await opening.start(
            thread_id=await self._thread_of(scope, connection),
            create_thread=method not in READING_METHODS,
            owner=owner,
            guarded=self._owner is not None,
            kwargs={"method": scrubbed(method, limit=20), "path": scrubbed(_path_below_root(scope), limit=1000)},
        )

    async def _owner_of(self, connection: HTTPConnection) -> str | None:
        owner = None if self._owner is None else await _resolved(self._owner, connection)
        return None if owner is None else validate_id(owner, "owner")

    async def _thread_of(self, scope: Scope, connection: HTTPConnection | None) -> str | None:
        if self._thread_id is not None:
            assert connection is not None
            found = await _resolved(self._thread_id, connection)
            return None if found is None else validate_thread_id(found)
        if self._thread_path is not None and (match := self._thread_path.match(_path_below_root(scope))):
            return validate_thread_id(match["thread_id"])
        given = [value for name, value in scope["headers"] if name == THREAD_HEADER]
        if not given:
            return None
        if len(given) > 1:
            raise InvalidInputError("The header X-Thread-ID stands twice: send it once.")
        try:
            return validate_thread_id(given[0].decode())
        except UnicodeDecodeError:
            raise InvalidInputError("The header X-Thread-ID is not UTF-8.") from None

    def _is_chosen(self, scope: Scope) -> bool:
        return (self._is_included is None or self._is_included(scope)) and not (
            self._is_excluded is not None and self._is_excluded(scope)
        )


async def _resolved(resolver: Resolver, connection: HTTPConnection) -> str | None:
    found = resolver(connection)
    return await found if inspect.isawaitable(found) else found


async def _refuse(scope: Scope, send: Send, exc: Exception) -> None:
    """Answer in place of the application."""
    status, code, detail = _answer_to(exc)
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008 if status < 500 else 1013, "reason": code})
        return
    body = json.dumps({"error": code, "detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if isinstance(exc, HTTPException):
        headers += [(name.lower().encode(), value.encode()) for name, value in (exc.headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _answer_to(exc: Exception) -> tuple[int, str, str]:
    if isinstance(exc, InvalidInputError):
        return 400, "invalid_input", str(exc)
    if isinstance(exc, ThreadNotFoundError):
        return 404, "thread_not_found", "There is no such thread."
    if isinstance(exc, HTTPException):  # the application's own answer, from owner= or thread_id=
        return exc.status_code, "refused", exc.detail
    logger.warning("A request is refused: %s", exc)
    return 503, "store_unavailable", "The server cannot keep its state now: try again."


def _path_below_root(scope: Scope) -> str:
    """The path as the application's routes know it (ASGI: `path` includes `root_path`)."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _compiled(template: str) -> re.Pattern[str]:
    if template.count("{thread_id}") != 1 or not template.startswith("/"):
        raise ConfigurationError("thread_path must begin with '/' and have {thread_id} once: '/threads/{thread_id}'.")
    parts = re.split(r"\{(\w+)\}", template.rstrip("/"))
    pattern = "".join(re.escape(part) if index % 2 == 0 else f"(?P<{part}>[^/]+)" for index, part in enumerate(parts))
    return re.compile(f"{pattern}(?:/.*)?$", re.DOTALL)


def _predicate(choice: PathChoice, name: str) -> Callable[[Scope], bool]:
    if callable(choice):
        return choice
    if isinstance(choice, str) or not all(str(path).startswith("/") for path in choice):
        raise ConfigurationError(f"{name} must be a collection of paths that begin with '/', or a predicate.")
    exact = frozenset(path for path in choice if not path.endswith("/*"))
    prefixes = tuple(path[:-1] for path in choice if path.endswith("/*"))

    def matches(scope: Scope) -> bool:
        path = _path_below_root(scope)
        return path in exact or path.startswith(prefixes) if prefixes else path in exact

    return matches
