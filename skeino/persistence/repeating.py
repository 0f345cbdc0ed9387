"""`Attempts`: an operation that is harmless when it is done twice, again while that may help and its time lasts.

A connection that breaks leaves its client in doubt: was the operation carried out, and only the answer lost? Where a
second time changes nothing, because the client has made the id or the row itself says who wrote it, another attempt
settles that. Everything else is its caller's to judge, by the error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from skeino.errors import StoreUnavailableError

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds since an operation was begun, after which it is not begun again."""

FIRST_PAUSE: Final = 0.01
LAST_PAUSE: Final = 0.5
"""Seconds between two attempts, at the most: at first and in the end."""


class Attempts:
    """The attempts at one operation.

    Args:
        patience: seconds, as `PATIENCE`.
        since: when the first was begun, by `time.monotonic()`; default now.
    """

    def __init__(self, patience: float = PATIENCE, *, since: float | None = None) -> None:
        self._deadline = (time.monotonic() if since is None else since) + patience
        self._pause = FIRST_PAUSE
        self._in_doubt = False

    async def another(self, failure: StoreUnavailableError, *, undone: bool = False) -> bool:
        """Whether to try again, after the pause that goes before that.

        If not, the failure is the operation's, and its `maybe_done` says whether any of the attempts may have been
        carried out.

        Args:
            failure: what the last attempt has raised.
            undone: nothing of it was carried out, and another attempt may fare better: the server is a new one, say.
        """
        self._in_doubt = self._in_doubt or failure.maybe_done
        pause = self._pause * random.uniform(0.1, 1.0)  # those who failed together must not come back together
        if not (failure.maybe_done or undone) or time.monotonic() + pause > self._deadline:
            failure.maybe_done = self._in_doubt
            return False
        self._pause = min(2 * self._pause, LAST_PAUSE)
        await asyncio.sleep(pause)
        return True


async def repeated(operation: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """What the operation results in, in the end.

    Raises:
        StoreUnavailableError: the last attempt's.
        Exception: whatever else an attempt raises.
    """
    began, attempts = time.monotonic(), None  # made when they are needed, which is seldom
    while True:
        try:
            return await operation()
        except StoreUnavailableError as exc:
            attempts = attempts or Attempts(patience, since=began)
            if not await attempts.another(exc):
                raise
