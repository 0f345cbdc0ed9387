"""`OneThread`: a thread that does what it is asked for, one thing after the other, for event loops.

`ThreadPoolExecutor` does that as well, with two futures, a condition and a semaphore for each call: some 40 µs, a sixth
of a short write to a SQLite file.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Call = tuple[Callable[[], Any], asyncio.Future[Any]]


class OneThread:
    """The thread, started when it is first asked for something.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """What the call results in, or raises. Who is cancelled loses the answer, the call is done all the same."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((call, future))
        if self._thread is None:
            # A daemon: a process that ends without closing must not wait for it.
            self._thread = threading.Thread(target=self._live, name=self._name, daemon=True)
            self._thread.start()
        return future

    def end(self) -> None:
        """Let the thread end when it has done what it was asked for; nothing more may be asked for."""
        self._calls.put(None)

    def _live(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, future = asked
            result, failure = None, None
            try:
                result = call()
            except BaseException as exc:
                failure = exc
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_answer, future, result, failure)
            del asked, call, future, result, failure  # lest they live until the next call


def _answer(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if failure is None:
        future.set_result(result)
    elif isinstance(failure, StopIteration):  # which no future takes
        future.set_exception(RuntimeError("the call raised StopIteration"))
    else:
        future.set_exception(failure)
