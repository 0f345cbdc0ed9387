"""The lifespan protocol around any inner application, and `combine_lifespans` for applications with one of their own.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from skeino.errors import ConfigurationError
from skeino_asgi.opening import Opening
from skeino_asgi.tracker import RunTracker

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("skeino")

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def combine_lifespans(*lifespans: Lifespan) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """One lifespan out of several: entered in their order, left in reverse, their state mappings merged.

    A later one can use what an earlier one opened, `tracker.checkpointer` say.

    Raises:
        ConfigurationError: one of them cannot be called with the application.
    """
    for lifespan in lifespans:
        if not callable(lifespan):
            raise ConfigurationError(
                f"combine_lifespans takes lifespans, not a {type(lifespan).__name__}: give tracker.lifespan, without "
                "parentheses."
            )

    @asynccontextmanager
    async def combined(app: Any) -> AsyncIterator[dict[str, Any]]:
        state: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            for lifespan in lifespans:
                entered = lifespan(app)
                if not isinstance(entered, AbstractAsyncContextManager):
                    raise ConfigurationError(
                        f"The lifespan {getattr(lifespan, '__qualname__', lifespan)!r} returned a "
                        f"{type(entered).__name__}, no async context manager: decorate it with @asynccontextmanager, "
                        "and give it without parentheses."
                    )
                yielded: Mapping[str, Any] | None = await stack.enter_async_context(entered)
                state |= yielded or {}
            yield state

    return combined


async def run_lifespan(app: ASGIApp, tracker: RunTracker, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a server's lifespan scope: open the tracker before the inner application starts, close it after.

    Raises:
        SkeinoError: opening failed; `lifespan.startup.failed` was sent before.
    """
    startup = await receive()
    try:
        opening = await tracker.openings.acquire()
    except BaseException as exc:
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        raise  # returning would leave test clients waiting for an answer
    if isinstance(scope.get("state"), dict):
        scope["state"].update(opening.state)
    await _Conversation(app, tracker, opening, startup, receive, send).hold(scope)


class _Conversation:
    """Stands between the server and the inner application while both talk about start-up and shutdown."""

    def __init__(
        self, app: ASGIApp, tracker: RunTracker, opening: Opening, startup: Message, receive: Receive, send: Send
    ) -> None:
        self._app = app
        self._tracker = tracker
        self._opening: Opening | None = opening
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send
        self._answered = False  # the server has been told how start-up went
        self._failed = False
        self._shutting_down = False
        self._done = False  # the server has been told how shutdown went

    async def hold(self, scope: Scope) -> None:
        try:
            try:
                await self._app(scope, self._to_app, self._from_app)
            except Exception as exc:
                if self._answered:
                    raise
                # The specification: an application that raises here does not support lifespan, so go on without.
                logger.debug("The application does not take part in lifespan (%s).", type(exc).__name__)
            if self._failed or self._done:
                return
            if not self._answered:
                await self._send({"type": "lifespan.startup.complete"})
            while not self._shutting_down:
                await self._to_app()
            await self._close()
            await self._send({"type": "lifespan.shutdown.complete"})
        finally:
            await self._close()  # also when the server cancels us without a word

    async def _to_app(self) -> Message:
        if self._startup is not None:
            message, self._startup = self._startup, None
            return message
        message = await self._receive()
        if message["type"] == "lifespan.shutdown":
            self._shutting_down = True
        return message

    async def _from_app(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._answered = True
        elif kind == "lifespan.startup.failed":
            self._answered = self._failed = True
            await self._close()  # before the server hears of it: some applications never return from here
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            self._done = True
            await self._close()
        await self._send(message)

    async def _close(self) -> None:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            await self._tracker.openings.release(opening)
