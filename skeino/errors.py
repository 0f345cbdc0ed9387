"""Every error skeino raises on purpose: one tree under `SkeinoError`.

Where the standard library has a near relative, an error derives from it, too, so that code which knows nothing of
skeino can catch it (`except LookupError`). Messages are one sentence: what is wrong, where, and what to do. They never
carry a connection string, a password or a row's values.
"""

from __future__ import annotations


class SkeinoError(Exception):
    """The root of all errors that skeino raises on purpose."""


class ConfigurationError(SkeinoError, ValueError):
    """The settings cannot work: raised at start-up, before any request is served."""


class MissingDriverError(ConfigurationError, ImportError):
    """The chosen scheme, or `skeino.testing`, needs a package that is not installed; the message names the extra."""

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name  # as ImportError has it


class UnknownSchemeError(ConfigurationError, LookupError):
    """No checkpointer is registered under the chosen scheme."""


class SplitBrainError(ConfigurationError):
    """Durable graph state beside a run list that dies with the process, without the explicit opt-in."""


class InvalidInputError(SkeinoError, ValueError):
    """An id, a metadata value or a filter that no backend would store faithfully; nothing was written."""


class StoreError(SkeinoError):
    """A checkpointer or metadata store could not do what was asked.

    Attributes:
        sqlstate: PostgreSQL's code for it, where there is one.
    """

    sqlstate: str | None = None


class StoreUnavailableError(StoreError, ConnectionError):
    """The database cannot be reached, did not answer in time, or has no free connection; worth a retry.

    Attributes:
        maybe_done: whether the operation may have been carried out all the same (the answer was lost).
    """

    def __init__(self, message: str, *, maybe_done: bool = False) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class SchemaError(StoreError):
    """The database lacks skeino's tables, has a schema newer than this code, or forbids creating it."""


class ThreadNotFoundError(StoreError, LookupError):
    """There is no such thread, or it belongs to another owner (the two are not told apart)."""


class RunNotFoundError(StoreError, LookupError):
    """There is no such run, or it belongs to another owner (the two are not told apart)."""


class ThreadExistsError(StoreError):
    """A thread of that id exists already."""


class ThreadBusyError(StoreError):
    """The thread has an active run: it cannot be deleted without `force=True`; or another run writes to it, and this
    one may not, or no longer, wait for it (`multitask_strategy`).
    """


class RunInterruptedError(SkeinoError):
    """Another run has taken the thread that this one wrote to, or its process was counted as dead: nothing was written.

    Raised by the checkpointer's next call of the run, which ends as `interrupted`.
    """


class DeltaChannelError(StoreError, NotImplementedError):
    """A thread's delta channels are rebuilt from checkpoints that would have been deleted; nothing was."""


class ResumeTrapWarning(UserWarning):
    """The caller put the current run's id into a graph's own config.

    LangGraph (`pregel/_loop.py`, `_first`) takes an equal `run_id` in the config and in the latest checkpoint
    for a resumption and silently drops the new input.
    """
