"""Run tracking and durable LangGraph state for any ASGI application, as one middleware."""

from __future__ import annotations

try:
    from skeino import _distribution as _distribution  # refuses PyPI's `skeino`, whichever was installed last
except ImportError as exc:
    if exc.name != "skeino":  # it has said what is wrong
        raise
    raise ImportError(
        "The package 'skeino' on this Python is another project's, installed over the one of 'skeino-asgi': "
        "run 'pip uninstall skeino skeino-asgi', then install 'skeino-asgi' again."
    ) from None

from skeino_asgi.lifespan import combine_lifespans
from skeino_asgi.logs import RunLogFilter, add_run_context
from skeino_asgi.middleware import RunMiddleware
from skeino_asgi.tracker import RunTracker

__all__ = ["RunLogFilter", "RunMiddleware", "RunTracker", "add_run_context", "combine_lifespans"]
