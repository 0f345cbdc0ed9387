"""What reading a checkpoint may do: LangGraph's msgpack can name any Python class, unless it is told to be strict."""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import Final

logger = logging.getLogger("skeino")

VARIABLE: Final = "LANGGRAPH_STRICT_MSGPACK"


def is_strict() -> bool:
    """Whether LangGraph, as it was imported, restores types only that are known to be safe, or allowed by a graph."""
    module = sys.modules.get("langgraph.checkpoint.serde._msgpack")  # read the variable when it was imported
    given = os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes")
    return bool(getattr(module, "STRICT_MSGPACK_ENABLED", given))


def notice_lenience() -> None:
    """Say once in a process that it is not strict.

    Not as a warning: it is LangGraph's default and no fault, and only who can write to the database can make use of it.
    What each start of a sound application warns of is soon not read any more.
    """
    if not is_strict():
        _say_it()


@functools.cache
def _say_it() -> None:
    logger.info(
        "Checkpoints may name any Python class, which is made when they are read: set %s=true in the environment of "
        "the process, so that whoever can write to the database cannot run code here.",
        VARIABLE,
    )
