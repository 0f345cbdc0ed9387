"""`SkeinoSettings`: the one setting, `checkpointer_scheme`, and what may go with it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from skeino.errors import ConfigurationError
from skeino.holds import MultitaskStrategy

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from skeino.persistence.rows import ThreadTTL

ENVIRONMENT_PREFIX: Final = "SKEINO_"

SWEEP_INTERVAL_MINUTES: Final = 5.0
"""LangGraph's own, where it is not told otherwise."""

# What Kubernetes sets for services whose names begin with "skeino"
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SET_BY_A_CLUSTER: Final = re.compile(
    r"SKEINO_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class SkeinoSettings(BaseSettings):
    """Where state and runs are kept; from keyword arguments, else from `SKEINO_*` environment variables.

    Frozen. Unknown fields are refused, and so are other environment variables of that prefix, which would be misspelt.
    The connection string appears in no repr and in no error.

    Raises:
        ConfigurationError: a field is unknown or has the wrong type; the message names the field only.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=False,
    )

    checkpointer_scheme: str = Field(default="memory", min_length=1)
    """The backend of both halves: memory, sqlite, postgres, mongodb, redis, or one registered by you. Case does not
    matter."""

    checkpointer_uri: str | None = Field(default=None, repr=False)
    """The backend's connection string. It never chooses the backend: without a scheme it is ignored."""

    checkpointer_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """What the backend's builder may be told besides (`setup_schema`, pool sizes, time limits in seconds)."""

    allow_ephemeral_metadata: bool = False
    """Accept durable graph state beside a run list in memory, which is empty after a restart."""

    on_store_error: Literal["reject", "untracked"] = "reject"
    """The store is down when a request begins: answer 503, or serve it without a run (and unstamped)."""

    lease_seconds: float = Field(default=30.0, ge=0.0, le=86400.0)
    """After how many seconds without a sign of life a process is counted as dead, and its runs end as errors. From 2;
    0 does without: the runs of a process that dies stay active."""

    multitask_strategy: MultitaskStrategy = "enqueue"
    """What a run does when another writes to its thread: wait for it, be refused, interrupt it, or undo it as well
    (`enqueue`, `reject`, `interrupt`, `rollback`: LangGraph's words). A run may choose otherwise for itself."""

    thread_wait_seconds: float = Field(default=30.0, ge=0.0, le=3600.0)
    """How long a run waits for its thread with `enqueue`, before `ThreadBusyError`."""

    thread_queue_limit: int = Field(default=100, ge=1, le=10_000)
    """How many runs may want a thread at once, the one that has it included; the next is told `ThreadBusyError`."""

    thread_ttl_minutes: float | None = Field(default=None, gt=0.0, le=1e9)
    """How long a new thread lives after its last change, unless it is given a `ttl` of its own; None is for ever."""

    thread_ttl_strategy: Literal["delete", "keep_latest"] = "delete"
    """What becomes of it then: it is deleted with its runs and its state, or its state is pruned to the latest."""

    run_retention_days: float | None = Field(default=None, gt=0.0, le=365_000.0)
    """How long finished runs are kept; None is for ever. Their threads, and the state, stay."""

    sweep_interval_minutes: float | None = Field(default=None, ge=0.0, le=1e6)
    """How often one of the processes looks for what is due. None is 5 where one of the two above is set, else never;
    0 is never: for those who leave it to `python -m skeino sweep`."""

    @property
    def thread_ttl(self) -> ThreadTTL | None:
        """The `ttl` of threads that are not given one."""
        if self.thread_ttl_minutes is None:
            return None
        return {"strategy": self.thread_ttl_strategy, "ttl": self.thread_ttl_minutes}

    @property
    def run_retention(self) -> timedelta | None:
        """How long finished runs are kept."""
        return None if self.run_retention_days is None else timedelta(days=self.run_retention_days)

    @property
    def sweep_interval(self) -> float | None:
        """Seconds from one sweep to the next; None for no sweeping."""
        minutes = self.sweep_interval_minutes
        if minutes is None and (self.thread_ttl_minutes is not None or self.run_retention_days is not None):
            minutes = SWEEP_INTERVAL_MINUTES
        return 60 * minutes if minutes else None

    @field_validator("lease_seconds")
    @classmethod
    def _is_long_enough(cls, seconds: float) -> float:
        if 0 < seconds < 2:
            raise ValueError("a shorter lease than two seconds is lost when a machine is busy: give 0, or 2 and more")
        return seconds

    if not TYPE_CHECKING:  # type checkers keep the signature that the fields give

        def __init__(self, **values: Any) -> None:
            _refuse_misspelt_variables(type(self).model_fields)
            try:
                super().__init__(**values)
            except ValidationError as exc:
                fields = [*type(self).model_fields]
                errors = exc.errors(include_input=False, include_url=False, include_context=False)
                problems = " ".join(_problem(".".join(map(str, one["loc"])), one, fields) for one in errors)
                raise ConfigurationError(f"SkeinoSettings cannot be built: {problems}") from None
            except SettingsError as exc:  # a variable that is no JSON
                raise ConfigurationError(
                    f"SkeinoSettings cannot be built ({exc}): the variable's value must be a JSON object."
                ) from None


def _problem(name: str, error: ErrorDetails, fields: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        return f"{name} is not one of its fields, {did_you_mean(name, fields)}"
    return f"{name}: {error['msg']}."


def _refuse_misspelt_variables(fields: Iterable[str]) -> None:
    """Refuse `SKEINO_SCHEME` and `SKEINO_CHECKPOINTER_SCHEMA`: falling back to memory in silence would lose data."""
    names = [*fields]
    known = [_variable_of(name) for name in names]
    for variable in os.environ:
        upper = variable.upper()
        if upper.startswith(ENVIRONMENT_PREFIX) and upper not in known and not _SET_BY_A_CLUSTER.fullmatch(upper):
            name = upper.removeprefix(ENVIRONMENT_PREFIX).lower()
            raise ConfigurationError(
                f"The environment variable {variable} is not one of skeino's: {did_you_mean(name, names, _variable_of)}"
            )


def _variable_of(field: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{field}".upper()


def did_you_mean(name: str, known: Sequence[str], spelt: Callable[[str], str] = str) -> str:
    """The end of a sentence that refuses a name: the nearest of those known, or all of them.

    Args:
        name: that was given.
        known: those that there are.
        spelt: how the sentence spells one of them.
    """
    ends = [one for one in known if one.endswith(f"_{name}")]  # `scheme`, `uri`
    close = ends if len(ends) == 1 else difflib.get_close_matches(name, known, n=1)
    return f"did you mean {spelt(close[0])}?" if close else f"known are {', '.join(map(spelt, known))}."
