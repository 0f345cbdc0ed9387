"""`copy_persistence()`: all threads, runs and graph state of one database, put into another.

Nothing is changed at the source, and nothing is overwritten at the target: what is there already is left, and compared.
So a copy that was interrupted is finished by starting it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from skeino.copying.report import CopyReport, OnProgress
from skeino.copying.rows import compare_rows, copy_rows
from skeino.copying.state import copy_state, count_state, opaque, strangers
from skeino.errors import ConfigurationError
from skeino.persistence.opening import open_persistence
from skeino.persistence.registry import (
    checkpointer_builder,
    is_built_in,
    metadata_store_builder,
    normalised_scheme,
)
from skeino.settings import SkeinoSettings

T = TypeVar("T")

DEFAULT_CONCURRENCY: Final = 8
MAX_CONCURRENCY: Final = 64
_OPERATION_TIMEOUT: Final = 300.0
"""Seconds; the names of all threads of a large database take longer than a request may."""


async def copy_persistence(
    source: SkeinoSettings,
    target: SkeinoSettings,
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: OnProgress | None = None,
) -> CopyReport:
    """Copy threads, runs, checkpoints and pending writes, and compare both sides.

    Rows come out exactly as they are, `run_id`s of checkpoints too. Values of graph states are not read, so the
    application's classes need not be there. Stop the application first: what it writes meanwhile is not copied, and
    shows as a difference.

    Args:
        source: is only read; its tables must be there and of this version.
        target: another database; missing tables are made.
        concurrency: how many threads' states are copied at once, 1 to 64.
        on_progress: called in the event loop after each page of rows and each thread.

    Returns:
        What was copied. Copy once more if it is not `verified` and the reason is gone.

    Raises:
        ConfigurationError: a scheme is unknown, keeps nothing, or has no metadata store; or both are one database.
        StoreUnavailableError: a database is away. What was copied stays; start again to go on.
        SchemaError: the source lacks tables, or either schema is too new.
    """
    _check(source, "source")
    _check(target, "target")
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ConfigurationError(f"concurrency must be from 1 to {MAX_CONCURRENCY}.")
    return await _outside_of_any_run(_copy(source, target, concurrency, on_progress or _ignore))


async def survey(source: SkeinoSettings, *, on_progress: OnProgress | None = None) -> CopyReport:
    """Count what `copy_persistence` would copy from here.

    Raises:
        ConfigurationError, StoreUnavailableError, SchemaError: as `copy_persistence`.
    """
    _check(source, "source")
    return await _outside_of_any_run(_count(source, on_progress or _ignore))


async def _copy(
    source: SkeinoSettings, target: SkeinoSettings, concurrency: int, on_progress: OnProgress
) -> CopyReport:
    async with (
        open_persistence(_opened(source, concurrency, setup_schema=False)) as opened_source,
        open_persistence(_opened(target, concurrency)) as opened_target,
    ):
        with opaque(opened_source) as here, opaque(opened_target) as there:
            if await here.inventory.aidentity() == await there.inventory.aidentity():
                raise ConfigurationError("Source and target are the same database: name another target.")
            report = CopyReport()
            await copy_rows(
                here.store, there.store, report, on_progress, strangers=lambda ids: strangers(here, there, ids)
            )
            await copy_state(here, there, report, concurrency=concurrency, on_progress=on_progress)
            await compare_rows(here.store, there.store, report, on_progress)
            return report


async def _count(source: SkeinoSettings, on_progress: OnProgress) -> CopyReport:
    async with open_persistence(_opened(source, 1, setup_schema=False)) as opened:
        with opaque(opened) as here:
            report = CopyReport()
            await copy_rows(here.store, None, report, on_progress)
            await count_state(here, report, on_progress=on_progress)
            return report


def _check(settings: SkeinoSettings, which: str) -> None:
    scheme = normalised_scheme(settings.checkpointer_scheme)
    _, durable = checkpointer_builder(scheme)
    if not durable:
        raise ConfigurationError(
            f"The {which}'s scheme {scheme!r} keeps nothing beyond its process: there is nothing to copy to or from it."
        )
    if metadata_store_builder(scheme) is None:
        raise ConfigurationError(
            f"The {which}'s scheme {scheme!r} has no metadata store for threads and runs: copy between schemes that "
            "have one, sqlite, postgres or mongodb."
        )


def _opened(settings: SkeinoSettings, concurrency: int, **options: Any) -> SkeinoSettings:
    """The settings with what copying wants of a built-in scheme; what they say themselves wins, but for the set-up."""
    scheme = normalised_scheme(settings.checkpointer_scheme)
    if not is_built_in(scheme):
        return settings
    wanted: dict[str, Any] = {"operation_timeout": _OPERATION_TIMEOUT}
    if scheme != "sqlite":
        wanted["pool_max_size"] = concurrency + 2
    merged = {**wanted, **settings.checkpointer_options, **options}
    return settings.model_copy(update={"checkpointer_options": merged})


async def _outside_of_any_run(work: Coroutine[Any, Any, T]) -> T:
    """A checkpoint keeps the run that wrote it, or none: it is not stamped with that of who copies it."""
    return await asyncio.create_task(work, context=Context())


def _ignore(progress: object) -> None:
    pass
