"""What PyMongo raises, as errors of skeino: one sentence, without the server's words, which may repeat a document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from skeino.errors import InvalidInputError, SchemaError, StoreError, StoreUnavailableError

_AUTHENTICATION_FAILED: Final = (18, 8000)
_UNAUTHORIZED: Final = 13
_TRANSIENT: Final = (6, 7, 24, 46, 89, 91, 112, 134, 189, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436)
_DISK_FULL: Final = 14031
_TOO_LARGE: Final = (10334, 17280, 17419, 17420)


@contextmanager
def translated_errors(place: str) -> Iterator[None]:
    """Turn PyMongo's errors into skeino's. The server's own text may repeat a document: it is not repeated."""
    try:
        with unreachable(place):
            yield
    except WaitQueueTimeoutError as exc:
        raise pool_exhausted(place) from exc
    except TimeoutError as exc:
        raise StoreUnavailableError(f"MongoDB at {place} did not answer in time.", maybe_done=True) from exc
    except InvalidOperation as exc:
        if "after close" in str(exc):
            raise StoreUnavailableError(f"The connection to MongoDB at {place} is closed.") from exc
        raise StoreError(f"MongoDB at {place} refused the operation ({_code(exc)}).") from exc
    except DocumentTooLarge:
        raise StoreError(f"MongoDB at {place} stores no document of more than 16 MiB.") from None
    except BSONError as exc:
        raise InvalidInputError(f"MongoDB cannot store one of the values ({_code(exc)}).") from None
    except PyMongoError as exc:
        error = _translated(exc, place)
        raise error from exc if isinstance(error, StoreUnavailableError) else None  # a refusal may repeat a document


def pool_exhausted(place: str) -> StoreUnavailableError:
    """There was no free connection in time."""
    return StoreUnavailableError(
        f"The pool of MongoDB at {place} had no free connection in time: is pool_max_size too small?"
    )


@contextmanager
def unreachable(place: str) -> Iterator[None]:
    """As `translated_errors`, for one error that a driver's transaction would try again, for two minutes."""
    try:
        yield
    except ServerSelectionTimeoutError as exc:
        raise StoreUnavailableError(f"MongoDB at {place} cannot be reached: {_problem(exc)}.") from exc


def _translated(exc: PyMongoError, place: str) -> StoreError:
    if exc.timeout:
        return StoreUnavailableError(f"MongoDB at {place} did not answer in time.", maybe_done=True)
    if isinstance(exc, OperationFailure):
        if exc.code in _AUTHENTICATION_FAILED:
            return StoreUnavailableError(f"MongoDB at {place} refused the user or the password.")
        if exc.code == _UNAUTHORIZED:
            return SchemaError(
                f"The user may not do this on MongoDB at {place} ({_code(exc)}): grant readWrite on the database."
            )
        if exc.code in _TOO_LARGE:
            return StoreError(f"MongoDB at {place} stores no document of more than 16 MiB.")
        if exc.code == _DISK_FULL:
            return StoreUnavailableError(f"MongoDB at {place} has no space left ({_code(exc)}): try again.")
        if exc.code in _TRANSIENT:
            return StoreUnavailableError(f"MongoDB at {place} failed ({_code(exc)}): try again.", maybe_done=True)
    transient = ("TransientTransactionError", "UnknownTransactionCommitResult", "RetryableWriteError")
    if isinstance(exc, ConnectionFailure) or any(exc.has_error_label(label) for label in transient):
        return StoreUnavailableError(f"MongoDB at {place} failed ({_code(exc)}): try again.", maybe_done=True)
    return StoreError(f"MongoDB at {place} refused the operation ({_code(exc)}).")


def _code(exc: Exception) -> str:
    code = getattr(exc, "code", None)
    return type(exc).__name__ if code is None else f"{type(exc).__name__}, {code}"


def _problem(exc: PyMongoError) -> str:
    """Why there was no server, in words of our own."""
    text = str(exc)
    for sign, problem in (
        ("Connect call failed", "the connection was refused (is the server running there?)"),  # asyncio's words
        ("refused", "the connection was refused (is the server running there?)"),
        ("uthentication failed", "it refused the user or the password"),
        ("No replica set members match", "there is no primary now"),
        ("Name or service not known", "the host's name is unknown"),
        ("name resolution", "the host's name is unknown"),
        ("DNS", "the host's name is unknown"),
        ("SSL", "the two sides do not agree on TLS"),
        ("not a member of replica set", "it is no member of the replica set that the URI names"),
        ("timed out", "it did not answer in time"),
    ):
        if sign in text:
            return problem
    return f"no server was found in time ({_code(exc)})"
