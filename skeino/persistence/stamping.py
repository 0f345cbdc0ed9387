"""`RunStampMixin`: puts the current run's id into the metadata of every checkpoint its saver writes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, cast
from uuid import UUID

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import ConfigurationError, InvalidInputError, ResumeTrapWarning
from skeino.persistence import access
from skeino.persistence.arguments import (
    check_writes,
    checked_checkpoint,
    checked_listing,
    place_of,
    place_to_list,
    place_to_write,
)
from skeino.persistence.beside import Beside, refuse_another_trackers_run, refuse_what_was_lost
from skeino.persistence.cancellation import CancelledOnItsWayError
from skeino.persistence.pruning import checked_thread_ids
from skeino.runs import Run, current_run, guard_var
from skeino.validation import validate_thread_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

    _Saver = BaseCheckpointSaver[Any]
else:
    _Saver = object

_INTERRUPT = "__interrupt__"  # langgraph.checkpoint.serde.types.INTERRUPT, as a channel of pending writes


class RunStampMixin(_Saver):
    """Stamps what its saver writes: `class Stamped(RunStampMixin, AsyncPostgresSaver)`.

    A subclass rather than a proxy, because LangGraph detects a saver's capabilities by its type and clones it
    with `with_allowlist()`. It overrides what every saver has and nothing else, so it fakes no capability.

    - The stamp goes into the `metadata` argument, never into the config: LangGraph takes an equal `run_id` in
      both for a resumption and drops the input. A `run_id` in a caller's config loses against it; one that is
      already in the argument itself wins (copies and restores keep each checkpoint's own run).
    - Without a `thread_id` nothing is read or written: stock savers share that state between all callers.
    - A thread of another owner is not found.
    """

    _goes_on_though_cancelled: ClassVar[bool] = False
    """Whether the saver stores what it was asked to, though who asked is cancelled meanwhile."""
    _beside: Beside | None = None

    # ── Writing ──────────────────────────────────────────────────────────────────────────────────────────

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        call = (*place_to_write(config), checked_checkpoint(checkpoint, metadata))
        if _within.get() == call:
            return await super().aput(config, checkpoint, metadata, new_versions)
        run = current_run()
        await _allow_write(self, run, call[0], goes_on=is_execution(config))
        if run is not None and self._goes_on_though_cancelled:
            run.ledger.begins(*call)
        try:
            with _Calling(call):
                stored = await super().aput(config, checkpoint, stamped_metadata(run, metadata), new_versions)
        except CancelledOnItsWayError as exc:
            if run is not None:
                run.ledger.wrote(*call)
            raise asyncio.CancelledError(*exc.args) from None
        except BaseException:
            if run is not None:
                run.ledger.failed(*call)
            raise
        if run is not None:
            run.ledger.wrote(*call)
        return stored

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        call = (*place_to_write(config), checked_checkpoint(checkpoint, metadata))
        if _within.get() == call:
            return super().put(config, checkpoint, metadata, new_versions)
        run = current_run()
        _allow_write_blocking(self, run, call[0], goes_on=is_execution(config))
        with _Calling(call):
            stored = super().put(config, checkpoint, stamped_metadata(run, metadata), new_versions)
        if run is not None:
            run.ledger.wrote(*call)
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        call = (*place_of(config), task_id)
        check_writes(config, writes, task_id, task_path)
        if _within.get() == call:
            return await super().aput_writes(config, writes, task_id, task_path)
        run = current_run()
        await _allow_write(self, run, call[0], goes_on=is_execution(config))
        try:
            with _Calling(call):
                await super().aput_writes(config, writes, task_id, task_path)
        except CancelledOnItsWayError as exc:
            _note_interrupt(run, config, writes)
            raise asyncio.CancelledError(*exc.args) from None
        _note_interrupt(run, config, writes)
        return None

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        call = (*place_of(config), task_id)
        check_writes(config, writes, task_id, task_path)
        if _within.get() == call:
            return super().put_writes(config, writes, task_id, task_path)
        run = current_run()
        _allow_write_blocking(self, run, call[0], goes_on=is_execution(config))
        with _Calling(call):
            super().put_writes(config, writes, task_id, task_path)
        _note_interrupt(run, config, writes)
        return None

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────────────

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        call = place_of(config)
        _warn_of_the_resume_trap(config)
        await _allow_read(call)
        if is_execution(config) and (run := current_run()) is not None:
            await _allow_write(self, run, call[0])  # before it loads what another run may be about to change
        with _Calling(call):
            return await super().aget_tuple(config)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        call = place_of(config)
        _warn_of_the_resume_trap(config)
        _allow_read_blocking(call)
        if is_execution(config) and (run := current_run()) is not None:
            _allow_write_blocking(self, run, call[0])
        with _Calling(call):
            return super().get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        call = _place_to_list(config)
        filter = checked_listing(filter, before, limit)
        if call is not None:
            await _allow_read(call)
        found: Any = super().alist(config, filter=filter, before=before, limit=limit)
        async with aclosing(found):
            while True:
                with _Calling(call):  # for each step: a generator may go on in another context
                    checkpoint = await anext(found, None)
                if checkpoint is None:
                    return
                yield checkpoint

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        call = _place_to_list(config)
        filter = checked_listing(filter, before, limit)
        if call is not None:
            _allow_read_blocking(call)
        found = iter(super().list(config, filter=filter, before=before, limit=limit))
        while True:
            with _Calling(call):
                checkpoint = next(found, None)
            if checkpoint is None:
                return
            yield checkpoint

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        call = place_of(config)
        await _allow_read(call)
        with _Calling(call):
            return await super().aget_delta_channel_history(config=config, channels=channels)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        call = place_of(config)
        _allow_read_blocking(call)
        with _Calling(call):
            return super().get_delta_channel_history(config=config, channels=channels)

    # ── Deleting ─────────────────────────────────────────────────────────────────────────────────────────

    async def adelete_thread(self, thread_id: str) -> None:
        call = (validate_thread_id(thread_id), "")
        await _allow_read(call)
        with _Calling(call):
            await super().adelete_thread(thread_id)
        _forget(thread_id)

    def delete_thread(self, thread_id: str) -> None:
        call = (validate_thread_id(thread_id), "")
        _allow_read_blocking(call)
        with _Calling(call):
            super().delete_thread(thread_id)
        _forget(thread_id)

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Guard the optional operations, too, but only those that the saver has: the others would be faked."""
        super().__init_subclass__(**arguments)
        for name in ("aprune", "prune", "acopy_thread", "copy_thread", "adelete_for_runs", "delete_for_runs"):
            operation = getattr(cls, name, None)
            if operation is not None and operation is not getattr(BaseCheckpointSaver, name, None):
                setattr(cls, name, _guarded(operation))


def stamped(saver: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    """The saver itself if it stamps already, else a twin whose class is `RunStampMixin` and the saver's own.

    The twin shares all the saver's attributes; its extra methods and capabilities are the saver's.

    Raises:
        ConfigurationError: it is no LangGraph saver, or its class cannot be extended this way.
    """
    if isinstance(saver, RunStampMixin):
        return saver
    if not isinstance(saver, BaseCheckpointSaver):
        raise ConfigurationError(
            f"The checkpointer's builder yielded a {type(saver).__name__}, which is no BaseCheckpointSaver."
        )
    try:
        stamped_class = _stamped_class(cast("Any", type(saver)))
        clone = object.__new__(stamped_class)  # assigning __class__ fails: the two layouts differ
        put_beside(clone, None)
    except TypeError as exc:
        name = type(saver).__name__
        raise ConfigurationError(
            f"Checkpoints of {name} cannot be stamped from outside: "
            f"declare it as 'class {name}(RunStampMixin, ...)' with skeino.persistence.RunStampMixin."
        ) from exc
    for one in type(saver).__mro__:
        for name in getattr(one, "__slots__", ()):
            if hasattr(saver, name):
                setattr(clone, name, getattr(saver, name))
    clone.__dict__ = saver.__dict__  # shared: what the saver opens later, its builder finds, and closes
    return clone


def put_beside(saver: BaseCheckpointSaver[Any], beside: Beside | None) -> None:
    """Tell a saver that stamps which store its runs' rows, and the claims of threads, are in."""
    if isinstance(saver, RunStampMixin):
        saver._beside = beside


def stamped_metadata(run: Run | None, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """A copy of the metadata with the run's id, unless it names a run already, or there is none."""
    if run is None or "run_id" in metadata:
        return metadata
    return cast("CheckpointMetadata", {**metadata, "run_id": run.run_id})


def is_execution(config: RunnableConfig) -> bool:
    """Whether a graph that is being executed asks: `graph.aget_state()` and `aupdate_state()` have no runtime."""
    return "__pregel_runtime" in config["configurable"]  # langgraph._internal._constants.CONFIG_KEY_RUNTIME


def fence_of(config: RunnableConfig) -> tuple[Run | None, int | None]:
    """The current run, and the fence that its writes to the config's thread go with; for savers that check it."""
    run = current_run()
    return run, None if run is None else run.fence_of(config["configurable"]["thread_id"])


@functools.cache
def _stamped_class(saver_class: type[BaseCheckpointSaver[Any]]) -> type[BaseCheckpointSaver[Any]]:
    # A place of its own for what stands beside it: the attributes are the saver's, which others may have stamped, too.
    namespace = {"__module__": saver_class.__module__, "__slots__": ("_beside",)}
    return type(f"Stamped{saver_class.__name__}", (RunStampMixin, saver_class), namespace)


_within: ContextVar[tuple[str, ...] | None] = ContextVar("skeino_saver_call", default=None)
"""The saver's call that is being made. `InMemorySaver.aput` calls its own `put`, `AsyncPostgresSaver.put` its own
`aput` in another thread: the inner one has been checked, stamped and is counted already."""


class _Calling:  # no generator: it is in the way of each checkpoint that is read
    __slots__ = ("_call", "_token")

    def __init__(self, call: tuple[str, ...] | None) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._token = _within.set(self._call)

    def __exit__(self, *_: object) -> None:
        _within.reset(self._token)


async def _allow_write(saver: RunStampMixin, run: Run | None, thread_id: str, *, goes_on: bool = False) -> None:
    if run is None:
        await _allow_read((thread_id,))
        return
    beside = getattr(saver, "_beside", None)
    refuse_another_trackers_run(beside, run)
    await access.allow_write(run, thread_id, goes_on=goes_on)
    refuse_what_was_lost(beside, run, thread_id)


def _allow_write_blocking(saver: RunStampMixin, run: Run | None, thread_id: str, *, goes_on: bool = False) -> None:
    if run is None:
        _allow_read_blocking((thread_id,))
        return
    beside = getattr(saver, "_beside", None)
    refuse_another_trackers_run(beside, run)
    access.allow_write_blocking(run, thread_id, goes_on=goes_on)
    refuse_what_was_lost(beside, run, thread_id)


async def _allow_read(call: tuple[str, ...]) -> None:
    guard = _guard_of(call)
    if guard is not None:
        await access.allow_read(guard, call[0])


def _allow_read_blocking(call: tuple[str, ...]) -> None:
    guard = _guard_of(call)
    if guard is not None:
        access.allow_read_blocking(guard, call[0])


def _guard_of(call: tuple[str, ...]) -> Run | None:
    """Who must be asked before this call; nobody, where it is part of another on the same thread."""
    outer = _within.get()
    return None if outer is not None and outer[0] == call[0] else current_run() or guard_var.get()


def _forget(thread_id: str) -> None:
    if (run := current_run()) is not None:
        run.forget_thread(thread_id)


def _guarded(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, its threads checked first: those it reads or deletes, and the one it writes to.

    Which threads a run wrote to cannot be checked: where threads have owners, a deletion by run is refused.
    """
    parameters = inspect.signature(operation)

    def threads_of(guard: Run, call: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        if "delete_for_runs" in operation.__name__:
            if guard.guarded:
                raise InvalidInputError(
                    "Where threads have owners, a request may not delete by run: delete the thread."
                )
            return [], []
        if "copy_thread" in operation.__name__:
            return [validate_thread_id(call["source_thread_id"])], [validate_thread_id(call["target_thread_id"])]
        return checked_thread_ids(call["thread_ids"]), []

    if inspect.iscoroutinefunction(operation):

        @functools.wraps(operation)
        async def checked(self: Any, *arguments: Any, **named: Any) -> Any:
            if (guard := current_run() or guard_var.get()) is not None:
                read, written = threads_of(guard, parameters.bind(self, *arguments, **named).arguments)
                for thread_id in read:
                    await access.check_owner(guard, thread_id)
                for thread_id in written:
                    await _allow_write(self, current_run(), thread_id)
            return await operation(self, *arguments, **named)

    else:

        @functools.wraps(operation)
        def checked(self: Any, *arguments: Any, **named: Any) -> Any:
            if (guard := current_run() or guard_var.get()) is not None:
                read, written = threads_of(guard, parameters.bind(self, *arguments, **named).arguments)
                for thread_id in read:
                    access.check_owner_blocking(guard, thread_id)
                for thread_id in written:
                    _allow_write_blocking(self, current_run(), thread_id)
            return operation(self, *arguments, **named)

    return checked


def _note_interrupt(run: Run | None, config: RunnableConfig, writes: Sequence[tuple[str, Any]]) -> None:
    if run is not None and any(channel == _INTERRUPT for channel, _ in writes):
        run.ledger.interrupted(*place_of(config), config["configurable"]["checkpoint_id"])


def _place_to_list(config: RunnableConfig | None) -> tuple[str, str] | None:
    if (place := place_to_list(config)) is not None:
        return place
    guard = current_run() or guard_var.get()
    if guard is not None and guard.guarded:
        raise InvalidInputError("Name a thread_id: where threads have owners, a run may not list those of all.")
    return None


def _warn_of_the_resume_trap(config: RunnableConfig) -> None:
    run = current_run()
    for part in (config.get("metadata"), config.get("configurable")) if run is not None else ():
        given = part.get("run_id") if isinstance(part, Mapping) else None
        if run is not None and isinstance(given, str | UUID) and str(given) == run.run_id:
            warnings.warn(
                "The graph's config carries the current run's id: LangGraph takes that for a resumption and drops "
                "the input of the run's second call. Leave it out, skeino stamps every checkpoint itself.",
                ResumeTrapWarning,
                stacklevel=3,
            )
            return
