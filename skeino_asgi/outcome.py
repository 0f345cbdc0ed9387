"""`Outcome`: how a run ended, in which status it leaves its thread, and what its row says of an exception."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Final

from skeino.errors import RunInterruptedError, ThreadBusyError
from skeino.persistence.rows import RunError, SettledStatus, TerminalStatus
from skeino.runs import Run
from skeino.scrubbing import scrubbed

THREAD_BUSY: Final = "thread_busy"
RUN_INTERRUPTED: Final = "run_interrupted"
"""The error's codes where two runs wanted one thread."""

HTTP_ERROR: Final = "http_error"
"""The error's code where the response's status alone says that something went wrong."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: TerminalStatus
    error: RunError | None = None
    http_status: int | None = None


@cache
def succeeded(http_status: int | None = None) -> Outcome:
    """It ended well, as most do."""
    return Outcome("success", None, http_status)


def interrupted(code: str, message: str, http_status: int | None = None) -> Outcome:
    """The end could not come, or nobody waited for it."""
    return Outcome("interrupted", RunError(code=code, type=None, message=message), http_status)


def failed(code: str, message: str, http_status: int | None = None) -> Outcome:
    """It went wrong without an exception."""
    return Outcome("error", RunError(code=code, type=None, message=message), http_status)


def is_http_error(outcome: Outcome) -> bool:
    """Whether nothing is known of a failure but the response's status, as where a framework answers exceptions."""
    return outcome.error is not None and outcome.error["code"] == HTTP_ERROR


def is_well(outcome: Outcome) -> bool:
    """Whether it is a success in the client's eyes, too."""
    return outcome.status == "success" and (outcome.http_status or 200) < 400


def raised(exc: BaseException, phase: str, http_status: int | None = None) -> Outcome:
    """An exception ended it: its class is kept, and its message, scrubbed and bounded."""
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return interrupted("cancelled", f"The run was cancelled {phase}.", http_status)
    kind = type(exc)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str.__str__(str(exc))
    except Exception:
        text = "(its message could not be read)"
    message = scrubbed(f"{phase}: {text}" if text else phase)
    timed_out = isinstance(exc, TimeoutError)
    error = RunError(code="timeout" if timed_out else "exception", type=scrubbed(name, limit=200), message=message)
    return Outcome("timeout" if timed_out else "error", error, http_status)


def stopped(conflict: ThreadBusyError | RunInterruptedError, http_status: int | None = None) -> Outcome:
    """Another run would not let it write to its thread, or has taken the thread from it."""
    code = THREAD_BUSY if isinstance(conflict, ThreadBusyError) else RUN_INTERRUPTED
    return interrupted(code, scrubbed(str(conflict)), http_status)


def is_stopped(run: Run, exc: BaseException | None) -> bool:
    """Whether the exception comes of another run's having stopped this one."""
    while run.conflict is not None and exc is not None:
        if isinstance(exc, RunInterruptedError | ThreadBusyError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def reported(reason: BaseException | str, http_status: int | None = None) -> Outcome:
    """The application called `run.fail(reason)`, and then ended well."""
    if isinstance(reason, BaseException):
        return raised(reason, "as the application reported", http_status)
    return failed("reported", scrubbed(reason), http_status)


def thread_status_after(run: Run, status: TerminalStatus) -> SettledStatus | None:
    """How the run leaves its thread; None where it wrote no state, or another has taken it, and so says nothing."""
    if status == "interrupted" and run.conflict is not None:
        return None
    paused = run.ledger.paused_on(run.thread_id)
    wrote = run.ledger.checkpoint_count > 0 or paused
    if status in ("error", "timeout"):
        return "error" if wrote or run.creates_thread else None
    if not wrote:
        return None
    return "interrupted" if status == "interrupted" or paused else "idle"
