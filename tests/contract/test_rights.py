"""Users who may look and not make: a SQLite file or folder that is read-only, a MongoDB user without rights.

PostgreSQL's roles are tested in test_postgres_schema.py.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino.errors import ConfigurationError, SchemaError
from skeino.persistence import open_persistence
from skeino.testing import finished
from tests.contract.test_schema import without_setup
from tests.servers import mongodb
from tests.servers.process import NOBODY, ServerUnavailableError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody gets to, and this process as a user who is not root."""
    with tempfile.TemporaryDirectory(prefix="skeino-rights-") as name:
        path = Path(name)
        path.chmod(0o777)
        if os.geteuid() != 0:
            yield path
            path.chmod(0o700)
            return
        os.seteuid(NOBODY)
        try:
            yield path
        finally:
            os.seteuid(0)


def settings_for(file: Path) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(file))


async def opened(settings: SkeinoSettings) -> None:
    async with open_persistence(settings) as persistence:
        await finished(persistence.metadata_store, "t")


async def test_a_folder_in_which_no_file_may_be_made_is_named(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(ConfigurationError, match=rf"file {closed}/skeino.db cannot be made: Permission denied: let"):
        await opened(settings_for(closed / "skeino.db"))


@pytest.mark.parametrize("with_rows", [False, True])
async def test_a_file_that_may_not_be_written_to_is_named(folder: Path, with_rows: bool) -> None:
    file = folder / "skeino.db"
    file.touch()
    if with_rows:
        await opened(settings_for(file))
    file.chmod(0o400)
    with pytest.raises(ConfigurationError, match=rf"cannot be written to: let this process's user write to {file},"):
        await opened(settings_for(file))
    file.chmod(0o600)
    await opened(settings_for(file))


async def test_a_folder_that_may_not_be_written_to_is_named_as_the_journal_is_beside_the_file(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    await opened(settings_for(inner / "skeino.db"))
    inner.chmod(0o555)
    try:
        with pytest.raises(
            ConfigurationError, match=rf"cannot be written to: let this process's user write to {inner},"
        ):
            await opened(settings_for(inner / "skeino.db"))
    finally:
        inner.chmod(0o777)


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[str, str]]:
    """URIs of one database, on a server that asks who comes: of its `owner`, a `reader` and a `writer`."""
    try:
        installation = mongodb.find_mongodb(local=True)
    except ServerUnavailableError as exc:
        pytest.skip(str(exc))
    rights: dict[str, Any] = {
        "owner": ["readWrite"],
        "reader": ["read"],
        "writer": [{"role": "writes", "db": "chat"}],
    }
    with mongodb.start_mongodb(installation, replica_set=False) as server:
        with server.client() as client:
            actions = ["find", "insert", "update", "remove", "listIndexes", "listCollections"]
            every = {"resource": {"db": "chat", "collection": ""}, "actions": actions}
            client["chat"].command("createRole", "writes", privileges=[every], roles=[])
            for name, roles in rights.items():
                client["chat"].command("createUser", name, pwd="s3cret", roles=roles)
        server.stop()
        server._command.append("--auth")
        server.start()
        yield {name: f"mongodb://{name}:s3cret@{server.host}:{server.port}/chat" for name in rights}


@pytest.mark.mongodb
async def test_a_mongodb_user_who_may_make_nothing_is_told_the_command(guarded: dict[str, str]) -> None:
    def settings(user: str) -> SkeinoSettings:
        return SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=guarded[user])

    for user in ("reader", "writer"):
        with pytest.raises(SchemaError) as refused:
            await opened(settings(user))
        assert "may not make the collections and indexes" in str(refused.value)
        assert "run python -m skeino schema --apply as a user with readWrite" in str(refused.value)
        assert "s3cret" not in str(refused.value)
    await opened(settings("owner"))
    for writer in (settings("writer"), without_setup(settings("writer"))):  # who needs to make nothing now
        await opened(writer)
    with pytest.raises(SchemaError, match="grant readWrite"):
        await opened(settings("reader"))
