"""PgBouncer really pools by transaction: what it promises, and what it takes away."""

import psycopg
import pytest

from tests.servers.pgbouncer import PgBouncer


def test_it_stands_in_front_of_the_same_database(postgres_dsn: str, pgbouncer_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as direct:
        direct.execute("CREATE TABLE seen AS SELECT 42 AS answer")
    with psycopg.connect(pgbouncer_dsn, prepare_threshold=None) as pooled:
        assert pooled.execute("SELECT answer FROM seen").fetchone() == (42,)


def test_it_pools_by_transaction(pgbouncer_server: PgBouncer, pgbouncer_dsn: str) -> None:
    """The second transaction of one client runs on another server connection when the first is taken."""
    with (
        psycopg.connect(pgbouncer_dsn, prepare_threshold=None) as one,
        psycopg.connect(pgbouncer_dsn, prepare_threshold=None) as other,
    ):
        first = one.execute("SELECT pg_backend_pid()").fetchone()
        one.commit()
        assert other.execute("SELECT pg_backend_pid()").fetchone() == first
        assert one.execute("SELECT pg_backend_pid()").fetchone() != first
    assert pgbouncer_server.version


def test_a_prepared_statement_is_lost_between_transactions(pgbouncer_dsn: str) -> None:
    with (
        psycopg.connect(pgbouncer_dsn, prepare_threshold=0) as one,
        psycopg.connect(pgbouncer_dsn, prepare_threshold=None) as other,
    ):
        one.execute("SELECT %s::int", (1,))
        one.commit()
        other.execute("SELECT 1")  # takes the connection that knows the statement
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            one.execute("SELECT %s::int", (1,))
