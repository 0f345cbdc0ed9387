"""What psycopg raises, as errors of skeino: one sentence, without the server's words, which may repeat a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from skeino.errors import InvalidInputError, SchemaError, StoreError, StoreUnavailableError

_CONNECTION_LOST: Final = ("08", "57P")  # the classes of connections' failures, and of a server that goes or comes
_PROBLEMS: Final = {"53100": "has no space left", "53200": "is out of memory", "53300": "has no connection left"}


@contextmanager
def translated_errors(place: str) -> Iterator[None]:
    """Turn psycopg's errors into skeino's. PostgreSQL's own text may repeat a row's values: it is not repeated."""
    try:
        yield
    except (PoolTimeout, TooManyRequests) as exc:
        raise StoreUnavailableError(
            f"PostgreSQL at {place} gave no connection in time: is it down, or pool_max_size too small?"
        ) from exc
    except PoolClosed as exc:
        raise StoreUnavailableError(f"The pool of PostgreSQL at {place} is closed.") from exc
    except TimeoutError as exc:
        raise StoreUnavailableError(f"PostgreSQL at {place} did not answer in time.", maybe_done=True) from exc
    except errors.DataError as exc:
        raise InvalidInputError(f"PostgreSQL cannot store one of the values ({_code(exc)}).") from None
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as exc:
        raise SchemaError(
            f"The database at {place} lacks skeino's tables ({_code(exc)}): open it once with setup_schema=True."
        ) from exc
    except errors.InsufficientPrivilege as exc:
        raise SchemaError(
            f"The role may not do this in the database at {place} ({_code(exc)}): grant it the tables, or run the "
            "set-up once as a role that may CREATE."
        ) from exc
    except errors.ReadOnlySqlTransaction as exc:
        error: StoreError = StoreUnavailableError(f"PostgreSQL at {place} is read-only now ({_code(exc)}): try again.")
        error.sqlstate = exc.sqlstate
        raise error from exc
    except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
        problem = _PROBLEMS.get(exc.sqlstate or "", "failed")
        error = StoreUnavailableError(f"PostgreSQL at {place} {problem} ({_code(exc)}): try again.")
        error.maybe_done = _is_lost(exc)
        error.sqlstate = exc.sqlstate
        raise error from exc
    except psycopg.Error as exc:
        error = StoreError(f"PostgreSQL at {place} refused the operation ({_code(exc)}).")
        error.sqlstate = exc.sqlstate
        raise error from None  # its DETAIL repeats a row's values


def connection_problem(exc: psycopg.Error) -> str:
    """What went wrong, in words of our own."""
    text = str(exc)
    for sign, problem in (
        ("Connection refused", "the connection was refused (is the server running there?)"),
        ("timeout", "it did not answer in time"),
        ("password authentication failed", "it refused the user or the password"),
        ("no password supplied", "it wants a password"),
        ("does not exist", "it knows no such database or role"),
        ("Name or service not known", "the host's name is unknown"),
        ("resolve", "the host's name is unknown"),
        ("too many clients", "it has too many connections already"),
        ("No such file", "there is no such socket (is the server running?)"),
        ("SSL", "the two sides do not agree on SSL"),
        ("starting up", "it is starting up"),
    ):
        if sign in text:
            return problem
    return f"the connection failed ({_code(exc)})"


def _is_lost(exc: psycopg.Error) -> bool:
    """Whether the connection broke, and an answer with it: what the server refuses, it has undone.

    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return exc.sqlstate is None or exc.sqlstate.startswith(_CONNECTION_LOST)


def _code(exc: psycopg.Error) -> str:
    return f"{type(exc).__name__}, {exc.sqlstate}" if exc.sqlstate else type(exc).__name__
