"""`OneThread`: a thread that does what it is asked for, one thing after the other, for event loops.

`ThreadPoolExecutor` does that as well, with two futures, a condition and a semaphore for each call: some 40 µs, a sixth
of a short write to a SQLite file.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Done = Callable[[Any, BaseException | None], object]
"""Is told what a call results in, or what it raised."""

_Call = tuple[Callable[[], Any], Done, asyncio.AbstractEventLoop]


class OneThread:
    """The thread, started when it is first asked for something.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    def ask(self, call: Callable[[], Any], done: Done) -> None:
        """Have it called; `done` is told on the event loop, without a task or a future in between.

        Raises:
            RuntimeError: the thread cannot be started, or has been told to end; it will not be called.
        """
        if self._ended:
            raise RuntimeError(f"the thread {self._name} has ended")
        loop = asyncio.get_running_loop()
        if self._thread is None:
            # A daemon: a process that ends without closing must not wait for it.
            self._thread = threading.Thread(target=self._live, name=self._name, daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self._thread = None
                raise
        self._calls.put((call, done, loop))

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """What the call results in, or raises. Who is cancelled loses the answer, the call is done all the same."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.ask(call, partial(answer, future))
        return future

    def end(self) -> None:
        """Let the thread end when it has done what it was asked for; nothing more is taken."""
        self._ended = True
        self._calls.put(None)

    def _live(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, done, loop = asked
            result, failure = None, None
            try:
                result = call()
            except BaseException as exc:
                failure = exc
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done, result, failure)
            del asked, call, done, loop, result, failure  # lest they live until the next call


def answer(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    """Answer who waits for the future, if anybody does."""
    if future.done():  # its caller was cancelled
        return
    if failure is None:
        future.set_result(result)
    elif isinstance(failure, StopIteration):  # which no future takes
        future.set_exception(RuntimeError("a call in a thread raised StopIteration"))
    else:
        future.set_exception(failure)
