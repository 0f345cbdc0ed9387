"""Server processes: own directory, own port, no root, and never an orphan."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

NOBODY = 65534
MEMORY = Path("/dev/shm")
ROOM = 1 << 30  # a container's default /dev/shm is 64 MB, too little for a database

# Where Debian and Ubuntu keep the libraries that servers are known to miss.
PACKAGES = {
    "libcrypto.so.3": "libssl3",
    "libcurl.so.4": "libcurl4",
    "liblzma.so.5": "liblzma5",
    "libssl.so.3": "libssl3",
    "libz.so.1": "zlib1g",
}
LOADER_ERRORS = (
    r"error while loading shared libraries: (\S+): cannot open",  # glibc
    r"Error loading shared library (\S+?):",  # musl
    r"Library not loaded: (\S+)",  # macOS
)


class ServerUnavailableError(Exception):
    """No server can be had; the message is one sentence that says why and what helps."""


class ServerFailedError(Exception):
    """A server that was there did not start, or did not stay; the message ends with its log."""


class ServerProcess:
    """One server in one directory, which can be started, stopped and killed many times.

    Its output goes to `log`. Should the test process die without a word, a guard stops the server.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str | Path], ready: Callable[[], bool], *, timeout: float = 30) -> None:
        """Start `command` and wait until `ready()`; at most `timeout` seconds.

        Raises:
            ServerUnavailableError: The binary lacks a shared library.
            ServerFailedError: The server ended or was not ready in time; it is stopped then.
        """
        if self.running:
            raise ServerFailedError(f"{self.name} is running already.")
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, which then stop their servers in order.
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.directory,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_identity(),
            )
        self._guard = _guard(self._process.pid, self.directory)
        deadline = time.monotonic() + timeout
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                output = self.log.read_bytes()[before:].decode(errors="replace").strip()
                if sentence := missing_library(Path(command[0]), output):
                    raise ServerUnavailableError(sentence)
                what = "ended at once" if ended else f"was not ready after {timeout:.0f} s"
                raise ServerFailedError(f"{self.name} {what}; its log ends with:\n{output[-2000:]}")
            time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM, *, timeout: float = 15) -> None:
        """Ask the server to end, wait for it, and kill it if it does not; harmless when it is not running."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal_number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End the server as a crash would; harmless when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._guard is not None:  # first its life, then its pipe: it must not act on this
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """The output of a server's own tool, run as the server will run.

    Raises:
        ServerUnavailableError: It is not there, may not be run, or lacks a shared library.
        ServerFailedError: It failed otherwise.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or "/",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            **_identity(),
        )
    except OSError as exc:
        raise ServerUnavailableError(f"{command[0]} cannot be run: {exc.strerror}.") from exc
    if done.returncode:
        output = f"{done.stdout}{done.stderr}".strip()
        if sentence := missing_library(Path(command[0]), output):
            raise ServerUnavailableError(sentence)
        raise ServerFailedError(f"{Path(command[0]).name} failed ({done.returncode}):\n{output[-2000:]}")
    return done.stdout


def missing_library(binary: Path, output: str) -> str | None:
    """The loader's complaint in one sentence with the remedy; None when `output` is something else."""
    if found := re.search(r"version [`']((?:GLIBC|GLIBCXX)_[\d.]+)' not found", output):
        return f"{binary} needs {found[1]}, newer than this machine's C library: use a newer distribution."
    found = next(filter(None, (re.search(pattern, output) for pattern in LOADER_ERRORS)), None)
    if found is None:
        return None
    library = found[1].rpartition("/")[2]
    package = PACKAGES.get(library)
    remedy = f"on Debian and Ubuntu 'apt install {package}'" if package else "install the package that holds it"
    return f"{binary} needs the shared library {library}, which this machine lacks: {remedy}."


def new_directory(name: str, under: Path | None = None) -> Path:
    """A new directory the server may write to: in `under` if that is given, else in memory where there is room."""
    if under is None and MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        under = MEMORY
    directory = Path(tempfile.mkdtemp(prefix=f"skeino-{name}-", dir=under))
    give_away(directory)
    return directory


def give_away(path: Path) -> None:
    """Make the user the server runs as the owner of `path`."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def reachable(path: Path) -> bool:
    """Whether the user the server runs as gets to `path`: for root's servers, all its parents are open."""
    return os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def free_port() -> int:
    """A free port below 32768: from there on the kernel hands ports to clients, ours included."""
    for _ in range(200):
        port = random.randrange(20000, 32768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerUnavailableError("No free port between 20000 and 32767 on 127.0.0.1: close some servers.")


def clean_environment() -> Mapping[str, str]:
    """The environment without PostgreSQL's variables, which would reach into the server's own tools."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "HOME": "/"}


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity() -> _Identity:
    """Servers refuse to run as root, or should."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _guard(pid: int, directory: Path) -> subprocess.Popen[bytes]:
    """A shell that reads a pipe which ends when the test process does, then clears up after it."""
    script = (
        'cat >/dev/null; kill -s TERM "$1"; for _ in 1 2 3 4 5 6 7 8 9 10; do '
        'kill -s 0 "$1" || break; sleep 0.2; done; kill -s KILL "$1"; rm -rf -- "$2"'
    )
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "guard", str(pid), str(directory)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
