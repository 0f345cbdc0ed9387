"""Run tracking and durable LangGraph state for any ASGI application, as one middleware."""

from __future__ import annotations

import skeino

if not hasattr(skeino, "SkeinoSettings"):
    raise ImportError(
        "The package 'skeino' on this Python is another project's, installed over the one of 'skeino-asgi': "
        "run 'pip uninstall skeino skeino-asgi', then 'pip install skeino-asgi'."
    )

from skeino_asgi.lifespan import combine_lifespans
from skeino_asgi.logs import RunLogFilter
from skeino_asgi.middleware import RunMiddleware
from skeino_asgi.tracker import RunTracker

__all__ = ["RunLogFilter", "RunMiddleware", "RunTracker", "combine_lifespans"]
