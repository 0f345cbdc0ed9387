"""What a server process promises, whichever server it is."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import process
from tests.servers.process import ServerFailedError, ServerProcess, ServerUnavailableError, missing_library

GLIBC = "server: error while loading shared libraries: {}: cannot open shared object file: No such file"


@pytest.fixture
def directory() -> Iterator[Path]:
    path = process.new_directory("test")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def script(directory: Path, body: str) -> Path:
    path = directory / "server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("output", "library", "remedy"),
    [
        (GLIBC.format("libcurl.so.4"), "libcurl.so.4", "'apt install libcurl4'"),
        (GLIBC.format("libodd.so.7"), "libodd.so.7", "the package that holds it"),
        (
            "Error loading shared library libodd.so.7: No such file",
            "libodd.so.7",
            "the package that holds it",
        ),
        ("dyld: Library not loaded: @rpath/libpq.5.dylib", "libpq.5.dylib", "the package that holds it"),
        ("server: version `GLIBC_2.38' not found (required by server)", "GLIBC_2.38", "newer distribution"),
    ],
)
def test_a_missing_shared_library_is_one_sentence(output: str, library: str, remedy: str) -> None:
    sentence = missing_library(Path("/opt/bin/server"), output)
    assert sentence is not None
    assert sentence.startswith("/opt/bin/server needs ")
    assert library in sentence
    assert remedy in sentence
    assert "\n" not in sentence


def test_any_other_output_is_not_taken_for_a_missing_library() -> None:
    assert missing_library(Path("server"), "FATAL: data directory has wrong ownership") is None


def test_a_server_that_lacks_a_library_is_unavailable_at_its_start(directory: Path) -> None:
    server = script(directory, f"echo '{GLIBC.format('libssl.so.3')}' >&2; exit 127")
    with pytest.raises(ServerUnavailableError, match=r"libssl\.so\.3, which this machine lacks.*libssl3"):
        ServerProcess("server", directory).start([server], lambda: False)
    with pytest.raises(ServerUnavailableError, match=r"libssl\.so\.3"):
        process.run([server])


def test_a_server_that_ends_shows_its_log(directory: Path) -> None:
    server = script(directory, "echo the disk is full; exit 1")
    with pytest.raises(ServerFailedError, match="the disk is full"):
        ServerProcess("server", directory).start([server], lambda: False)


def test_a_server_that_ignores_its_signal_is_killed(directory: Path) -> None:
    server = ServerProcess("server", directory)
    ready = directory / "ready"
    server.start([script(directory, f"trap '' TERM; touch {ready}; sleep 60")], ready.exists)
    assert server.running
    server.stop(timeout=0.2)
    assert not server.running


def test_ports_are_below_those_of_clients() -> None:
    assert all(20000 <= process.free_port() < 32768 for _ in range(20))


def test_a_server_ends_with_a_killed_test_process(directory: Path) -> None:
    program = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from tests.servers.process import ServerProcess
        server = ServerProcess("server", Path(sys.argv[1]))
        server.start(["/bin/sh", "-c", "echo $$ > pid; exec sleep 60"], Path(sys.argv[1], "pid").exists)
        os.kill(os.getpid(), 9)
    """)
    command = [sys.executable, "-c", program, str(directory)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while directory.exists():
        assert time.monotonic() < deadline, f"{os.listdir(directory)} outlived the test process"
        time.sleep(0.05)
