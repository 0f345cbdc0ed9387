"""Durable state and run tracking for LangGraph applications; this half knows databases and no HTTP."""

from __future__ import annotations

from skeino import _distribution as _distribution  # first: it refuses what would fail strangely
from skeino.errors import (
    ConfigurationError,
    DeltaChannelError,
    InvalidInputError,
    MissingDriverError,
    ResumeTrapWarning,
    RunInterruptedError,
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
    "DeltaChannelError",
    "InvalidInputError",
    "MissingDriverError",
    "ResumeTrapWarning",
    "Run",
    "RunInterruptedError",
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
