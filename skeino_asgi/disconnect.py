"""`serve_until_the_client_leaves()`: what `on_disconnect="cancel"` does."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from skeino_asgi.exchange import HttpExchange

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

READ_AHEAD: Final = 64 * 1024
"""Bytes of a request's body that are read before the application asks for them, so that its client's leaving, which
comes after the body, is noticed."""

MESSAGE_SIZE: Final = 512
"""Bytes that a message counts beside its body: one may be empty, and take memory all the same."""


async def serve_until_the_client_leaves(app: ASGIApp, scope: Scope, exchange: HttpExchange) -> None:
    """Serve the request; cancel the application when its client leaves before the response is complete.

    A server tells only those who ask, with `receive()`, and an application at work does not ask. So it is asked here,
    ahead of the application.

    The cancellation ends here, as that of `asyncio.timeout` does; one that comes from elsewhere is passed on.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    ahead = _ReadAhead(exchange, task)
    if not any(name == b"expect" for name, _ in scope["headers"]):  # asking for its body makes a server say "continue"
        ahead.begin()
    try:
        await app(scope, ahead.receive, exchange.send)
    except asyncio.CancelledError:
        if not exchange.cut_off or task.cancelling() > before + 1:
            raise
    finally:
        if exchange.cut_off and task.cancelling() > before:
            task.uncancel()
        ahead.end()


class _ReadAhead:
    """Stands between the server's `receive` and the application's."""

    def __init__(self, exchange: HttpExchange, task: asyncio.Task[object]) -> None:
        self._exchange = exchange
        self._task = task
        self._messages: deque[Message] = deque()
        self._size = 0
        self._moved = asyncio.Event()  # a message came, or was taken, or none will come
        self._watch: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._ended = False

    def begin(self) -> None:
        """In the request's own context, which an outer middleware's `receive` may read."""
        self._watch = asyncio.get_running_loop().create_task(self._read(), name="skeino client")

    def end(self) -> None:
        """Whoever asks from now on asks the server itself."""
        self._ended = True
        self._moved.set()
        if self._watch is not None:
            self._watch.cancel()

    async def receive(self) -> Message:
        if self._watch is None and not self._ended:
            self.begin()
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return await self._exchange.receive()
            self._moved.clear()
            await self._moved.wait()
        message = self._messages[0]
        if message["type"] != "http.disconnect":  # that one stays: whoever asks again hears it again
            self._messages.popleft()
            self._size -= _size_of(message)
            self._moved.set()
        return message

    async def _read(self) -> None:
        try:
            while True:
                while self._size >= READ_AHEAD:
                    self._moved.clear()
                    await self._moved.wait()
                message = await self._exchange.receive()
                self._messages.append(message)
                self._size += _size_of(message)
                self._moved.set()
                if message["type"] == "http.disconnect":
                    if self._exchange.left:
                        self._exchange.cut_off = True
                        self._task.cancel("the client left")
                    return
        except Exception as exc:  # the server's, which the application is told when it asks
            self._error = exc
            self._moved.set()


def _size_of(message: Message) -> int:
    return len(message.get("body", b"")) + MESSAGE_SIZE
