"""The arguments of a saver's operations, checked once for all backends.

A graph's config often has a client's own words in it: an id, a namespace, what a handler took from a request's body
into `configurable`. LangGraph copies the plain values there into each checkpoint's metadata, where one that is no JSON
makes a search through all of them fail on one database, and cannot be stored on another. So what not each backend would
store faithfully is refused here, before anything is read or written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.base import EXCLUDED_METADATA_KEYS

from skeino.errors import InvalidInputError
from skeino.validation import (
    validate_id,
    validate_json_value,
    validate_text,
    validate_thread_id,
)

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata

MAX_NAMESPACE_CHARACTERS: Final = 2000
"""Of `checkpoint_ns`: a subgraph within a subgraph adds some fifty; PostgreSQL has them in an index, with the ids."""

_FILTER_KEY: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""As LangGraph's SQLite saver has it, which puts the key into the text of its query."""


def place_of(config: RunnableConfig) -> tuple[str, str]:
    """The thread and the checkpoint namespace that a config names, checked.

    Raises:
        InvalidInputError: the thread is missing, or it, the namespace or the checkpoint id is not storable.
    """
    configurable = _configurable_of(config, "The graph's config")
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise InvalidInputError(
            "The graph's config has no thread_id: pass run.config, or {'configurable': {'thread_id': ...}}."
        )
    if (checkpoint_id := configurable.get("checkpoint_id")) is not None:
        validate_id(checkpoint_id, "checkpoint_id")
    namespace = configurable.get("checkpoint_ns", "")
    if namespace != "" or not isinstance(namespace, str):
        _check_namespace(namespace)
    return validate_thread_id(thread_id), namespace


def place_to_list(config: RunnableConfig | None) -> tuple[str, str] | None:
    """As `place_of`; None for a list of all threads' checkpoints.

    Raises:
        InvalidInputError: as `place_of`.
    """
    if config is None or config == {}:
        return None
    if "thread_id" not in _configurable_of(config, "The graph's config"):
        raise InvalidInputError("The config of a list has no thread_id: pass None for the checkpoints of all threads.")
    return place_of(config)


def place_to_write(config: RunnableConfig) -> tuple[str, str]:
    """As `place_of`; what LangGraph will copy from the config into the checkpoint's metadata is checked as well.

    Raises:
        InvalidInputError: something of it is not storable.
    """
    place = place_of(config)
    for part in ("metadata", "configurable"):
        if given := config.get(part):
            if type(given) is not dict and not isinstance(given, Mapping):
                raise InvalidInputError(f"The config's {part} must be a mapping, not {type(given).__name__}.")
            _check_copied(given, f"the config's {part}")
    return place


def checked_checkpoint(checkpoint: Checkpoint, metadata: CheckpointMetadata) -> str:
    """The checkpoint's id.

    Raises:
        InvalidInputError: it is none, or the metadata is not storable.
    """
    if type(metadata) is not dict and not isinstance(metadata, Mapping):
        raise InvalidInputError(f"A checkpoint's metadata must be a mapping, not {type(metadata).__name__}.")
    for key, value in metadata.items():
        if type(key) is not str or not _is_plain(key) or not (_is_plain(value) or (type(value) is dict and not value)):
            validate_text(key, "a key of the checkpoint's metadata")
            if key != "writes":  # of an older LangGraph: any objects
                given = value.replace("\x00", "") if isinstance(value, str) else value  # as LangGraph does
                validate_json_value(given, "the checkpoint's metadata")
    return validate_id(checkpoint["id"], "the checkpoint's id")


def check_writes(config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> None:
    """Check to what pending writes belong; their values are the serializer's to judge.

    Raises:
        InvalidInputError: the checkpoint, the task or a channel is not named, or not by a storable text.
    """
    if config["configurable"].get("checkpoint_id") is None:
        raise InvalidInputError("Pending writes need a checkpoint_id in their config.")
    validate_text(task_id, "task_id")
    if task_path != "":
        validate_text(task_path, "task_path")
    for channel, _ in writes:
        validate_text(channel, "a channel's name")


def checked_listing(filter: Any, before: Any, limit: Any) -> dict[str, Any] | None:
    """The filter of a list of checkpoints, copied.

    Raises:
        InvalidInputError: the filter has a key that is no name (letters, digits, `_`, `.`, `-`), an operator of
            MongoDB's or what is no JSON; `before` names no checkpoint; the limit is no whole number from 0.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise InvalidInputError(f"limit must be a whole number, not {type(limit).__name__}.")
    if limit is not None and limit < 0:
        raise InvalidInputError("limit is below 0: leave it out to list all.")
    if before is not None:
        validate_id(_configurable_of(before, "before").get("checkpoint_id"), "before's checkpoint_id")
    if not filter and not isinstance(filter, str | bytes | list | tuple):
        return None
    if not isinstance(filter, Mapping):
        raise InvalidInputError(f"filter must be a mapping, not {type(filter).__name__}.")
    copied: dict[str, Any] = validate_json_value(filter, "filter")
    if not all(_FILTER_KEY.fullmatch(key) for key in copied):
        raise InvalidInputError("filter has a key that is no name: letters, digits, '_', '.' and '-' are allowed.")
    _refuse_operators(list(copied.values()))
    return copied


def _configurable_of(config: object, name: str) -> Mapping[str, Any]:
    # For each checkpoint: comparing a type takes a fraction of `isinstance`, which asks the abstract class.
    if type(config) is not dict and not isinstance(config, Mapping):
        raise InvalidInputError(f"{name} must be a mapping, not {type(config).__name__}.")
    found = config.get("configurable") or {}
    if type(found) is not dict and not isinstance(found, Mapping):
        raise InvalidInputError(f"{name} has a 'configurable' that is no mapping, but a {type(found).__name__}.")
    return found


def _check_namespace(namespace: object) -> None:
    validate_text(namespace, "checkpoint_ns")
    if isinstance(namespace, str) and len(namespace) > MAX_NAMESPACE_CHARACTERS:
        raise InvalidInputError(
            f"checkpoint_ns has {len(namespace)} characters: at most {MAX_NAMESPACE_CHARACTERS} are allowed."
        )


def _check_copied(given: Mapping[Any, Any], where: str) -> None:
    """What `get_checkpoint_metadata` copies: texts, numbers and booleans. Its NULs in texts are removed there."""
    for key, value in given.items():
        if isinstance(key, str) and (key in EXCLUDED_METADATA_KEYS or key.startswith("__")):
            continue
        if type(key) is not str or not _is_plain(key):
            validate_text(key, f"a key of {where}")
        if not _is_plain(value) and isinstance(value, str | int | float):
            validate_json_value(value.replace("\x00", "") if isinstance(value, str) else value, where)


def _is_plain(value: object) -> bool:
    """Whether it is an ASCII text without NUL, a usual number or a boolean: most are, and need no closer look."""
    kind = type(value)
    if kind is str:
        return value.isascii() and "\x00" not in value  # type: ignore[attr-defined,operator]
    return kind is bool or value is None or (kind is int and -(2**63) <= value < 2**63)  # type: ignore[operator]


def _refuse_operators(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, dict):
            if any(key.startswith("$") for key in value):
                raise InvalidInputError("filter has a key that begins with '$', as operators of MongoDB do.")
            _refuse_operators(list(value.values()))
        elif isinstance(value, list):
            _refuse_operators(value)
