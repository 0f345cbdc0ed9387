"""`open_persistence()`: both halves of a scheme, opened together and closed in reverse order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import ConfigurationError, SplitBrainError, ThreadNotFoundError
from skeino.persistence.beside import Beside
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.deserializing import notice_lenience
from skeino.persistence.memory import InMemoryMetadataStore
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.registry import (
    CheckpointerSpec,
    checkpointer_builder,
    entered,
    is_built_in,
    metadata_store_builder,
    normalised_scheme,
)
from skeino.persistence.rows import ANY_OWNER, OwnerFilter
from skeino.persistence.stamping import put_beside, stamped
from skeino.runs import current_run
from skeino.settings import SkeinoSettings

logger = logging.getLogger("skeino")

URI_IN_VAIN: Final = "checkpointer_uri is set, but only checkpointer_scheme chooses a backend, and that is not set."


@dataclass(frozen=True, slots=True)
class Persistence:
    """Both halves of one scheme, open."""

    checkpointer: BaseCheckpointSaver[Any]
    metadata_store: MetadataStoreProtocol

    async def delete_thread(self, thread_id: str, *, force: bool = False, owner: OwnerFilter = ANY_OWNER) -> None:
        """Delete a thread in both halves: its row and its runs, then its checkpoints.

        The run that asks for it does not count as active, and keeps its row, without the thread. The rows go
        first, because only there it can be decided at once, against all processes, that no run is active. A caller
        that is cancelled, or whose time is up, waits until both are done. Where the row is gone already and state
        is left, which is nobody's then, the state is deleted.

        Raises:
            ThreadNotFoundError: there is no such thread, or it is another owner's.
            ThreadBusyError: a run is active on it, and `force` is False. Nothing was deleted.
        """
        await to_its_end(self._delete_thread(thread_id, force=force, owner=owner))

    async def _delete_thread(self, thread_id: str, *, force: bool, owner: OwnerFilter) -> None:
        run = current_run()
        if owner is ANY_OWNER and run is not None and run.guarded:
            owner = run.owner
        ignore_run = None if run is None else run.run_id
        try:
            await self.metadata_store.delete_thread(thread_id, force=force, owner=owner, ignore_run=ignore_run)
        except ThreadNotFoundError:
            if not await self._has_state_alone(thread_id):
                raise
        if run is not None:
            run.forget_thread(thread_id)
        await self.checkpointer.adelete_thread(thread_id)

    async def _has_state_alone(self, thread_id: str) -> bool:
        """Whether there is state of a thread, in whichever namespace, that has no row, of whichever owner."""
        if await self.metadata_store.get_thread(thread_id) is not None:
            return False
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        return any([True async for _ in self.checkpointer.alist(config, limit=1)])


@asynccontextmanager
async def open_persistence(settings: SkeinoSettings | None = None) -> AsyncIterator[Persistence]:
    """Open the checkpointer and the metadata store that the settings choose; close them in reverse order.

    Args:
        settings: default `SkeinoSettings()`, which reads `SKEINO_*` environment variables.

    Raises:
        ConfigurationError: the scheme is unknown, its extra or its URI is missing, or durable state would
            stand beside an ephemeral run list.
        StoreUnavailableError: the database cannot be reached.
        SchemaError: its schema is missing or too new.
    """
    settings = settings if settings is not None else SkeinoSettings()
    scheme = normalised_scheme(settings.checkpointer_scheme)
    build_checkpointer, durable = checkpointer_builder(scheme)
    build_store = metadata_store_builder(scheme)
    refuse_split_brain(settings)
    if durable:
        notice_lenience()
    elif settings.checkpointer_uri and "checkpointer_scheme" not in settings.model_fields_set:
        logger.warning("State and runs are kept in memory: %s", URI_IN_VAIN)
    elif is_built_in(scheme) and not durable:
        logger.info("State and runs are kept in the memory of this process, which no other shares.")
    async with AsyncExitStack() as stack:
        spec = spec_of(settings, stack)
        saver = stamped(await stack.enter_async_context(entered(build_checkpointer, spec)))
        if build_store is None:
            if durable:
                logger.warning("Runs are kept in memory only, beside durable state: the list is lost at a restart.")
            store: MetadataStoreProtocol = InMemoryMetadataStore(thread_ttl=spec.thread_ttl)
        else:
            store = await stack.enter_async_context(entered(build_store, spec))
        _refuse_what_is_no_store(store, scheme)
        put_beside(saver, Beside(store, store.fence_here if type(store) is InMemoryMetadataStore else None))
        yield Persistence(saver, store)


@asynccontextmanager
async def open_checkpointer(settings: SkeinoSettings | None = None) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Open the checkpointer alone, stamped; for scripts that read or write state and track no runs.

    Raises:
        ConfigurationError, StoreUnavailableError, SchemaError: as `open_persistence`.
    """
    settings = settings if settings is not None else SkeinoSettings()
    scheme = normalised_scheme(settings.checkpointer_scheme)
    build_checkpointer, durable = checkpointer_builder(scheme)
    if durable:
        notice_lenience()
    async with AsyncExitStack() as stack:
        yield stamped(await stack.enter_async_context(entered(build_checkpointer, spec_of(settings, stack))))


def _refuse_what_is_no_store(store: object, scheme: str) -> None:
    if isinstance(store, MetadataStoreProtocol):
        return
    methods = [name for name in vars(MetadataStoreProtocol) if not name.startswith("_")]
    lacking = [name for name in methods if not callable(getattr(store, name, None))]
    raise ConfigurationError(
        f"The metadata store's builder of scheme {scheme!r} yielded a {type(store).__name__}, which lacks methods of "
        f"MetadataStoreProtocol: {', '.join(lacking)}."
    )


def refuse_split_brain(settings: SkeinoSettings) -> None:
    """Refuse a durable state beside a list of runs that is lost at a restart, unless that is wanted.

    Raises:
        SplitBrainError: it is not.
        UnknownSchemeError, MissingDriverError: as `checkpointer_builder`.
    """
    scheme = normalised_scheme(settings.checkpointer_scheme)
    _, durable = checkpointer_builder(scheme)
    if durable and metadata_store_builder(scheme) is None and not settings.allow_ephemeral_metadata:
        raise SplitBrainError(
            f"The scheme {scheme!r} keeps graph state but has no metadata store, so the list of runs would be empty "
            "after a restart: choose another scheme, register a store with @register_metadata_store, or set "
            "allow_ephemeral_metadata=True."
        )


def spec_of(settings: SkeinoSettings, stack: AsyncExitStack | None = None) -> CheckpointerSpec:
    """What builders are given; with a stack, both halves can share what they open."""
    return CheckpointerSpec(
        normalised_scheme(settings.checkpointer_scheme),
        settings.checkpointer_uri,
        dict(settings.checkpointer_options),
        thread_ttl=settings.thread_ttl,
        _stack=stack,
    )
