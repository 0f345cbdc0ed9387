"""What must not be left half done when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class CancelledOnItsWayError(asyncio.CancelledError):
    """A saver's caller was cancelled, but what it writes is on its way: the answer alone is lost.

    The mixin around the saver makes a plain `CancelledError` of it, which is what `asyncio.timeout` looks for.
    """


async def to_its_end(operation: Awaitable[T]) -> T:
    """The operation's result; a cancellation of the caller, or several, is raised when the operation is over."""
    task = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # of a time limit, and then of a shutdown
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody else asks for it
        raise
