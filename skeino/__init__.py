"""Durable state and run tracking for LangGraph applications; this half knows databases and no HTTP."""

from __future__ import annotations

from importlib import metadata as _metadata

try:
    _found = _metadata.distribution("skeino").metadata["Name"]
except _metadata.PackageNotFoundError:
    _found = None
if _found == "skeino":  # the look-up by name also finds an unpacked "skeino-something"
    raise ImportError(
        "The distribution 'skeino' is another project that installs into the same folder as 'skeino-asgi', so one "
        "has overwritten files of the other: run 'pip uninstall skeino skeino-asgi', then 'pip install skeino-asgi'."
    )

from skeino.errors import (
    ConfigurationError,
    InvalidInputError,
    MissingDriverError,
    ResumeTrapWarning,
    RunNotFoundError,
    SchemaError,
    SkeinoError,
    SplitBrainError,
    StoreError,
    StoreUnavailableError,
    ThreadBusyError,
    ThreadExistsError,
    ThreadNotFoundError,
    UnknownSchemeError,
)
from skeino.runs import Run, current_run
from skeino.settings import SkeinoSettings

__all__ = [
    "ConfigurationError",
    "InvalidInputError",
    "MissingDriverError",
    "ResumeTrapWarning",
    "Run",
    "RunNotFoundError",
    "SchemaError",
    "SkeinoError",
    "SkeinoSettings",
    "SplitBrainError",
    "StoreError",
    "StoreUnavailableError",
    "ThreadBusyError",
    "ThreadExistsError",
    "ThreadNotFoundError",
    "UnknownSchemeError",
    "current_run",
]
