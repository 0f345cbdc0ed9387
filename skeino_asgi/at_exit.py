"""`close_at_exit()`: for servers without lifespan whose event loop just stops, and is never closed. Daphne is one."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from functools import cache
from typing import Final
from weakref import WeakSet

from skeino_asgi.opening import Opening

logger = logging.getLogger("skeino")

PATIENCE: Final = 15.0
"""Seconds that the end of the process waits for one closing."""

_open: WeakSet[Opening] = WeakSet()


def close_at_exit(opening: Opening) -> None:
    """Close the opening when the interpreter ends, if its event loop stands still by then but was not closed.

    `asyncio.run`, which most servers use, cancels the opening's owner task and so closes it before.
    """
    _open.add(opening)
    _register()


@cache
def _register() -> None:
    # Not the public atexit, where there is a choice: that comes after the interpreter has waited for all threads,
    # which the drivers' own never leave while a database is open, and has shut down the executors. CPython has this
    # since 3.9, for concurrent.futures; without it such a process would have to be stopped twice.
    getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _close_all() -> None:
    for opening in list(_open):
        loop = opening.loop
        if opening.process_id != os.getpid() or loop.is_closed() or loop.is_running():
            continue  # a forked child's connections and runs are its parent's
        try:
            loop.run_until_complete(asyncio.wait_for(opening.close(), PATIENCE))
        except Exception as exc:
            logger.error("Not everything could be closed at the end of the process: %s", exc)
