"""Servers for the tests that ask for one, and what a missing server means.

On a laptop a test whose server cannot be had is skipped with the reason; with CI=true a skip is a failure.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest

from tests.servers import mongodb, pgbouncer, postgres, redis
from tests.servers.mongodb import LocalMongoServer, MongoInstallation, MongoServer
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import LocalPostgresServer, PostgresInstallation, PostgresServer
from tests.servers.process import ServerUnavailableError
from tests.servers.redis import LocalRedisServer, RedisInstallation, RedisServer

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

installation_key = pytest.StashKey[PostgresInstallation | ServerUnavailableError]()
mongodb_key = pytest.StashKey[MongoInstallation | ServerUnavailableError]()
redis_key = pytest.StashKey[RedisInstallation | ServerUnavailableError]()


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The session's PostgreSQL server, started by the first test that needs it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres.running_postgres(_installation(pytestconfig)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


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
        try:
            server = stack.enter_context(postgres.start_postgres(postgres.find_postgres(local=True)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode in front of the session's PostgreSQL server."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(pgbouncer.start_pgbouncer(postgres_server))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


@pytest.fixture
def pgbouncer_dsn(pgbouncer_server: PgBouncer, postgres_dsn: str) -> str:
    """The database of `postgres_dsn`, through PgBouncer."""
    return pgbouncer_server.dsn(postgres_dsn)


@pytest.fixture(scope="session")
def mongodb_server(pytestconfig: pytest.Config) -> Iterator[MongoServer]:
    """The session's MongoDB server, a replica set, started by the first test that needs it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(mongodb.running_mongodb(_mongodb_installation(pytestconfig)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


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
        try:
            server = stack.enter_context(mongodb.start_mongodb(mongodb.find_mongodb(local=True)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


@pytest.fixture(scope="module")
def standalone_mongodb_server() -> Iterator[LocalMongoServer]:
    """A MongoDB server for this module alone that is no replica set, and so has no transactions."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(mongodb.start_mongodb(mongodb.find_mongodb(local=True), replica_set=False))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """The session's Redis server, with Search and JSON, started by the first test that needs it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(redis.running_redis(_redis_installation(pytestconfig)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


@pytest.fixture
def redis_dsn(redis_server: RedisServer) -> str:
    """The DSN of that server, emptied of checkpoints."""
    return redis_server.empty()


@pytest.fixture(scope="module")
def private_redis_server() -> Iterator[LocalRedisServer]:
    """A Redis server for this module alone, to stop, kill and restart as it likes."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(redis.start_redis(redis.find_redis(local=True)))
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
        yield server


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
        if fixtures & {"redis_server", "private_redis_server"}:
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
    if any(item.get_closest_marker("postgres") for item in session.items):
        try:
            session.config.stash[installation_key] = postgres.find_postgres()
        except ServerUnavailableError as exc:
            session.config.stash[installation_key] = exc
    if any(item.get_closest_marker("mongodb") for item in session.items):
        try:
            session.config.stash[mongodb_key] = mongodb.find_mongodb()
        except ServerUnavailableError as exc:
            session.config.stash[mongodb_key] = exc
    if any(item.get_closest_marker("redis") for item in session.items):
        try:
            session.config.stash[redis_key] = redis.find_redis()
        except ServerUnavailableError as exc:
            session.config.stash[redis_key] = exc


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


def _installation(config: pytest.Config) -> PostgresInstallation:
    found = config.stash.get(installation_key, None) or postgres.find_postgres()
    if isinstance(found, ServerUnavailableError):
        raise found
    return found


def _mongodb_installation(config: pytest.Config) -> MongoInstallation:
    found = config.stash.get(mongodb_key, None) or mongodb.find_mongodb()
    if isinstance(found, ServerUnavailableError):
        raise found
    return found


def _redis_installation(config: pytest.Config) -> RedisInstallation:
    found = config.stash.get(redis_key, None) or redis.find_redis()
    if isinstance(found, ServerUnavailableError):
        raise found
    return found


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr  # for a skip: path, line and message
    return where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)
