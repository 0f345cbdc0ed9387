"""PgBouncer in transaction mode, in front of a PostgreSQL server. PyPI does not have it; distributions do."""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.postgres import PostgresServer, with_parameters
from tests.servers.process import (
    ServerProcess,
    ServerUnavailableError,
    free_port,
    give_away,
    new_directory,
    run,
)

CONFIGURATION = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {pool_mode}
default_pool_size = 20
max_client_conn = 500
server_reset_query_always = 0
ignore_startup_parameters = extra_float_digits
{more}"""


class PgBouncer:
    """A running PgBouncer."""

    def __init__(self, port: int, version: str) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.version = version

    def dsn(self, dsn: str) -> str:
        """The same database as `dsn`, through the pooler."""
        return with_parameters(dsn, host=self.host, port=self.port)


def find_pgbouncer() -> Path | None:
    """Its binary; Debian keeps it outside an ordinary user's PATH."""
    found = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    return Path(found) if found else None


@contextmanager
def start_pgbouncer(server: PostgresServer, pool_mode: str = "transaction") -> Iterator[PgBouncer]:
    """A PgBouncer for every database of `server`, stopped and deleted at the end.

    Raises:
        ServerUnavailableError: It is not installed, or lacks a shared library.
    """
    binary = find_pgbouncer()
    if binary is None:
        raise ServerUnavailableError("PgBouncer is not installed (on Debian and Ubuntu: apt install pgbouncer).")
    found = re.search(r"PgBouncer (\d+)\.(\d+)\S*", run([binary, "--version"]))
    if found is None:
        raise ServerUnavailableError(f"{binary} does not say which version of PgBouncer it is.")
    directory = new_directory("pgbouncer")
    process = ServerProcess("PgBouncer", directory)
    try:
        users, configuration = directory / "users.txt", directory / "pgbouncer.ini"
        users.write_text(f'"{server.user}" "{server.password}"\n')
        port = free_port()
        text = CONFIGURATION.format(
            host=server.host,
            port=server.port,
            listen_port=port,
            users=users,
            pool_mode=pool_mode,
            # From 1.21 it can carry prepared statements. Many that run today cannot: keep the hard case.
            more="max_prepared_statements = 0\n" if (int(found[1]), int(found[2])) >= (1, 21) else "",
        )
        configuration.write_text(text)
        for file in (users, configuration):
            file.chmod(0o600)
            give_away(file)
        process.start([binary, configuration], lambda: _listens(port))
        yield PgBouncer(port, found[0].removeprefix("PgBouncer "))
        process.stop()
    finally:
        process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
