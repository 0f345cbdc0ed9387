"""`RunStampMixin`: puts the current run's id into the metadata of every checkpoint its saver writes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import ConfigurationError, InvalidInputError, ResumeTrapWarning
from skeino.runs import Run, current_run
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

    # ── Writing ──────────────────────────────────────────────────────────────────────────────────────────

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread_id = thread_id_of(config)
        run = current_run()
        if run is None or not run.ledger.begin(checkpoint["id"]):
            return await super().aput(config, checkpoint, metadata, new_versions)
        try:
            await run.allow_write(thread_id)
            stored = await super().aput(config, checkpoint, stamped_metadata(run, config, metadata), new_versions)
        finally:
            run.ledger.end(checkpoint["id"])
        _count(run, config, checkpoint)
        return stored

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread_id = thread_id_of(config)
        run = current_run()
        if run is None or not run.ledger.begin(checkpoint["id"]):
            return super().put(config, checkpoint, metadata, new_versions)
        try:
            run.allow_write_blocking(thread_id)
            # An asynchronous saver's `put` calls its own `aput`, which must not count the checkpoint again.
            stored = super().put(config, checkpoint, stamped_metadata(run, config, metadata), new_versions)
        finally:
            run.ledger.end(checkpoint["id"])
        _count(run, config, checkpoint)
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            await run.allow_write(thread_id)
        await super().aput_writes(config, writes, task_id, task_path)
        if run is not None:
            _note_interrupt(run, config, writes)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            run.allow_write_blocking(thread_id)
        super().put_writes(config, writes, task_id, task_path)
        if run is not None:
            _note_interrupt(run, config, writes)

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────────────

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            _warn_of_the_resume_trap(run, config)
            await run.allow_read(thread_id)
        return await super().aget_tuple(config)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            _warn_of_the_resume_trap(run, config)
            run.allow_read_blocking(thread_id)
        return super().get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        run = current_run()
        thread_id = _thread_id_to_list(run, config)
        if run is not None and thread_id is not None:
            await run.allow_read(thread_id)
        found = super().alist(config, filter=filter, before=before, limit=limit)
        async with aclosing(cast("Any", found)):
            async for checkpoint in found:
                yield checkpoint

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        run = current_run()
        thread_id = _thread_id_to_list(run, config)
        if run is not None and thread_id is not None:
            run.allow_read_blocking(thread_id)
        yield from super().list(config, filter=filter, before=before, limit=limit)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            await run.allow_read(thread_id)
        return await super().aget_delta_channel_history(config=config, channels=channels)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        thread_id = thread_id_of(config)
        if (run := current_run()) is not None:
            run.allow_read_blocking(thread_id)
        return super().get_delta_channel_history(config=config, channels=channels)

    # ── Deleting ─────────────────────────────────────────────────────────────────────────────────────────

    async def adelete_thread(self, thread_id: str) -> None:
        validate_thread_id(thread_id)
        if (run := current_run()) is not None:
            await run.allow_read(thread_id)
        await super().adelete_thread(thread_id)

    def delete_thread(self, thread_id: str) -> None:
        validate_thread_id(thread_id)
        if (run := current_run()) is not None:
            run.allow_read_blocking(thread_id)
        super().delete_thread(thread_id)


def stamped(saver: BaseCheckpointSaver[Any]) -> BaseCheckpointSaver[Any]:
    """The saver itself if it stamps already, else a shallow copy whose class is `RunStampMixin` and its own.

    The copy shares the saver's connections and storage; its extra methods and capabilities are the saver's.

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
    vars(clone).update(vars(saver))
    return clone


def thread_id_of(config: RunnableConfig) -> str:
    """The config's `configurable.thread_id`, which every read and write of state must name.

    Raises:
        InvalidInputError: it is missing, or no thread id.
    """
    thread_id = (config.get("configurable") or {}).get("thread_id")
    if thread_id is None:
        raise InvalidInputError(
            "The graph's config has no thread_id: pass run.config, or {'configurable': {'thread_id': ...}}."
        )
    return validate_thread_id(thread_id)


def stamped_metadata(run: Run, config: RunnableConfig, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """A copy of the metadata with the run's id, unless it names a run already."""
    _warn_of_the_resume_trap(run, config)
    if "run_id" in metadata:
        return metadata
    return cast("CheckpointMetadata", {**metadata, "run_id": run.run_id})


@functools.cache
def _stamped_class(saver_class: type[BaseCheckpointSaver[Any]]) -> type[BaseCheckpointSaver[Any]]:
    return type(f"Stamped{saver_class.__name__}", (RunStampMixin, saver_class), {"__module__": saver_class.__module__})


def _count(run: Run, config: RunnableConfig, checkpoint: Checkpoint) -> None:
    configurable = config["configurable"]
    run.ledger.wrote(
        configurable["thread_id"],
        configurable.get("checkpoint_ns", ""),
        checkpoint["id"],
        configurable.get("checkpoint_id"),
    )


def _note_interrupt(run: Run, config: RunnableConfig, writes: Sequence[tuple[str, Any]]) -> None:
    if any(channel == _INTERRUPT for channel, _ in writes):
        configurable = config["configurable"]
        run.ledger.interrupted(
            configurable["thread_id"], configurable.get("checkpoint_ns", ""), configurable["checkpoint_id"]
        )


def _thread_id_to_list(run: Run | None, config: RunnableConfig | None) -> str | None:
    if config is not None and (config.get("configurable") or {}).get("thread_id") is not None:
        return thread_id_of(config)
    if run is not None and run.guarded:
        raise InvalidInputError("Name a thread_id: where threads have owners, a run may not list those of all.")
    return None


def _warn_of_the_resume_trap(run: Run, config: RunnableConfig) -> None:
    for part in (config.get("metadata"), config.get("configurable")):
        if part and str(part.get("run_id")) == run.run_id:
            warnings.warn(
                "The graph's config carries the current run's id: LangGraph takes that for a resumption and drops "
                "the input of the run's second call. Leave it out, skeino stamps every checkpoint itself.",
                ResumeTrapWarning,
                stacklevel=3,
            )
            return
