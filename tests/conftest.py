"""Servers for the tests that ask for one, and what a missing server means.

On a laptop a test whose server cannot be had is skipped with the reason; with CI=true a skip is a failure.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import pytest

from tests.servers import mongodb, pgbouncer, postgres, redis
from tests.servers.mongodb import LocalMongoServer, MongoServer
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import LocalPostgresServer, PostgresServer
from tests.servers.process import ServerUnavailableError
from tests.servers.redis import LocalRedisServer, RedisInstallation, RedisServer

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

T = TypeVar("T")

FINDERS: dict[str, Callable[[], Any]] = {
    "postgres": postgres.find_postgres,
    "mongodb": mongodb.find_mongodb,
    "redis": redis.find_redis,
}
found_key = pytest.StashKey[dict[str, Any]]()


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The session's PostgreSQL server, started by the first test that needs it."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: postgres.running_postgres(_found(pytestconfig, "postgres")))


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The DSN of a fresh database, dropped after the test."""
    dsn = postgres_server.create_database()
    yield dsn
    postgres_server.drop_database(dsn)


@pytest.fixture(scope="module")
def private_postgres_server() -> Iterator[LocalPostgresServer]:
    """A PostgreSQL server for this module alone, to stop, kill and restart as it likes."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: postgres.start_postgres(postgres.find_postgres(local=True)))


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode in front of the session's PostgreSQL server."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: pgbouncer.start_pgbouncer(postgres_server))


@pytest.fixture
def pgbouncer_dsn(pgbouncer_server: PgBouncer, postgres_dsn: str) -> str:
    """The database of `postgres_dsn`, through PgBouncer."""
    return pgbouncer_server.dsn(postgres_dsn)


@pytest.fixture(scope="session")
def mongodb_server(pytestconfig: pytest.Config) -> Iterator[MongoServer]:
    """The session's MongoDB server, a replica set, started by the first test that needs it."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: mongodb.running_mongodb(_found(pytestconfig, "mongodb")))


@pytest.fixture
def mongodb_uri(mongodb_server: MongoServer) -> Iterator[str]:
    """The URI of a fresh database, dropped after the test."""
    uri = mongodb_server.create_database()
    yield uri
    mongodb_server.drop_database(uri)


@pytest.fixture(scope="module")
def private_mongodb_server() -> Iterator[LocalMongoServer]:
    """A MongoDB server for this module alone, to stop, kill and restart as it likes."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: mongodb.start_mongodb(mongodb.find_mongodb(local=True)))


@pytest.fixture(scope="module")
def standalone_mongodb_server() -> Iterator[LocalMongoServer]:
    """A MongoDB server for this module alone that is no replica set, and so has no transactions."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: mongodb.start_mongodb(mongodb.find_mongodb(local=True), replica_set=False))


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """The session's Redis server, with Search and JSON, started by the first test that needs it."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: redis.running_redis(_found(pytestconfig, "redis")))


@pytest.fixture(scope="session")
def redis_installation() -> RedisInstallation:
    """Redis' binary and modules, to start servers of all kinds."""
    try:
        return redis.find_redis(local=True)
    except ServerUnavailableError as exc:
        pytest.skip(str(exc))


@pytest.fixture
def redis_dsn(redis_server: RedisServer) -> str:
    """The DSN of that server, emptied of checkpoints."""
    return redis_server.empty()


@pytest.fixture(scope="module")
def private_redis_server() -> Iterator[LocalRedisServer]:
    """A Redis server for this module alone, to stop, kill and restart as it likes."""
    with ExitStack() as stack:
        yield _entered(stack, lambda: redis.start_redis(redis.find_redis(local=True)))


def pytest_report_header() -> list[str]:
    binary = pgbouncer.find_pgbouncer()
    absent = "not installed: its tests fail" if CI else "not installed: its tests are left out"
    return [
        f"postgres: {postgres.planned()}",
        f"pgbouncer: {binary or absent}",
        f"mongodb: {mongodb.planned()}",
        f"redis: {redis.planned()}",
    ]


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a server by its fixtures, and leave out PgBouncer's tests where it is not installed."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"postgres_server", "private_postgres_server"}:
            item.add_marker("postgres")
        if "pgbouncer_server" in fixtures:
            item.add_marker("pgbouncer")
        if fixtures & {"mongodb_server", "private_mongodb_server", "standalone_mongodb_server"}:
            item.add_marker("mongodb")
        if fixtures & {"redis_server", "private_redis_server", "redis_installation"}:
            item.add_marker("redis")
    if not CI and pgbouncer.find_pgbouncer() is None:
        left_out = [item for item in items if item.get_closest_marker("pgbouncer")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the servers before the first test, whose timeout is not meant for a download."""
    if session.config.option.collectonly:
        return
    found = session.config.stash[found_key] = {}
    for name, find in FINDERS.items():
        if any(item.get_closest_marker(name) for item in session.items):
            try:
                found[name] = find()
            except ServerUnavailableError as exc:
                found[name] = exc


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI=true forbids: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, which CI=true forbids: {_reason(report)}"
    return report


def _found(config: pytest.Config, name: str) -> Any:
    """Where the server of that name comes from.

    Raises:
        ServerUnavailableError: There is none.
    """
    found = config.stash.get(found_key, {}).get(name) or FINDERS[name]()
    if isinstance(found, ServerUnavailableError):
        raise found
    return found


def _entered(stack: ExitStack, server: Callable[[], AbstractContextManager[T]]) -> T:
    """The running server; without one the test is skipped, with the reason."""
    try:
        return stack.enter_context(server())
    except ServerUnavailableError as exc:
        pytest.skip(str(exc))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr  # for a skip: path, line and message
    return where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)
