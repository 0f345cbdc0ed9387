"""`spawn()`: a task that inherits no request's context."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any


def spawn(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task in a fresh context; whoever calls keeps it, for the event loop does not."""
    return asyncio.get_running_loop().create_task(coroutine, name=name, context=contextvars.Context())
