"""`Openings`: what a tracker has open, one `Opening` for each event loop."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from weakref import WeakKeyDictionary

from skeino.errors import SkeinoError, StoreUnavailableError
from skeino.settings import SkeinoSettings
from skeino_asgi.at_exit import close_at_exit
from skeino_asgi.opening import Opening


class Openings:
    """Opens once on each event loop, however many ask for it, and closes with the last of them."""

    def __init__(self, settings: SkeinoSettings) -> None:
        self._settings = settings
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Opening] = WeakKeyDictionary()
        self._latest: Opening | None = None  # the one that was looked up last: most have but one

    def here(self) -> Opening:
        """What is open on this event loop; outside of any, in a worker thread say, the only one that is open.

        Raises:
            StoreUnavailableError: nothing is.
        """
        try:
            opening = self._by_loop.get(asyncio.get_running_loop())
        except RuntimeError:
            every = list(self._by_loop.values())
            opening = every[0] if len(every) == 1 else None
        if opening is None or not opening.is_open:
            raise StoreUnavailableError(
                "skeino is not open: enter tracker.lifespan first (lifespan=tracker.lifespan, or RunMiddleware around "
                "the application)."
            )
        return opening

    def already(self) -> Opening | None:
        """What is open on this event loop; None if the caller has to ask `ready()`."""
        opening = self._latest
        loop = get_running_loop()
        if opening is None or opening.loop is not loop:
            opening = self._latest = self._by_loop.get(loop)
        return opening if opening is not None and opening.state and not opening.closing else None

    async def ready(self) -> Opening:
        """What is open on this event loop; under a server without lifespan, the first request opens it.

        Then the end of the event loop closes it (`asyncio.run` cancels the task that owns it), or else the end of
        the process.

        Raises:
            StoreUnavailableError: it is closing, or the database cannot be reached.
        """
        opening = self._by_loop.get(asyncio.get_running_loop())
        if opening is None:
            opening = self._begin()
            opening.users += 1  # for as long as the event loop lives
            close_at_exit(opening)
        elif opening.closing:
            raise StoreUnavailableError("The server is shutting down: try again.")
        if not opening.is_open:
            try:
                await opening.opened()
            except SkeinoError:
                self._drop(opening)
                raise
        return opening

    async def acquire(self) -> Opening:
        """Open on this event loop, or share what is open; to be paired with `release`."""
        opening = self._by_loop.get(asyncio.get_running_loop())
        if opening is None or opening.closing:
            opening = self._begin()
        opening.users += 1
        try:
            await opening.opened()
        except BaseException:
            opening.users -= 1
            if opening.users == 0:  # it failed, or nobody waits for it any more
                opening.abandon()
                self._drop(opening)
            raise
        return opening

    async def release(self, opening: Opening) -> None:
        """The last one to release closes, in the task that opened."""
        opening.users -= 1
        if opening.users == 0:
            try:
                await opening.close()
            finally:
                self._drop(opening)

    def _begin(self) -> Opening:
        self._latest = None
        opening = self._by_loop[asyncio.get_running_loop()] = Opening(self._settings, self._drop)
        return opening

    def _drop(self, opening: Opening) -> None:
        self._latest = None
        if self._by_loop.get(opening.loop) is opening:
            del self._by_loop[opening.loop]
