"""The fixtures that open one backend after the other, always through `open_persistence`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from psycopg import sql
from pymongo import AsyncMongoClient, MongoClient

from skeino import SkeinoSettings
from skeino.persistence import (
    CheckpointerSpec,
    InMemoryMetadataStore,
    MetadataStoreProtocol,
    Persistence,
    open_persistence,
    registry,
)
from tests.servers.mongodb import MongoServer
from tests.servers.postgres import PostgresServer

SQLITE = pytest.param("sqlite")
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
MONGODB = pytest.param("mongodb", marks=pytest.mark.mongodb)
MOTOR = pytest.param("mongodb-motor", marks=pytest.mark.mongodb)  # over a client that the application has
CLIENT = pytest.param("mongodb-client", marks=pytest.mark.mongodb)
REDIS = pytest.param("redis", marks=pytest.mark.redis)  # a checkpointer only
ALL = [pytest.param("memory"), SQLITE, POSTGRES, MONGODB]
SQL = [SQLITE, POSTGRES]
DURABLE = [*SQL, MONGODB]


@pytest.fixture(scope="module")
def module_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The DSN of one database for a whole module; `settings` empties it before each test."""
    dsn = postgres_server.create_database()
    yield dsn
    postgres_server.drop_database(dsn)


@pytest.fixture(scope="module")
def module_mongodb(mongodb_server: MongoServer) -> Iterator[str]:
    """As `module_database`, of MongoDB."""
    uri = mongodb_server.create_database()
    yield uri
    mongodb_server.drop_database(uri)


@pytest.fixture(params=[*ALL, MOTOR, CLIENT])
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SkeinoSettings]:
    """The settings of an empty place to keep things, one backend after the other."""
    if request.param not in ("mongodb-motor", "mongodb-client"):
        yield settings_of(request, tmp_path)
        return
    uri: str = request.getfixturevalue("module_mongodb")
    empty_mongodb(uri)
    async with client_settings(uri, motor=request.param == "mongodb-motor") as of_client:
        yield of_client


@asynccontextmanager
async def client_settings(
    uri: str, *, motor: bool, habits: Mapping[str, Any] = MappingProxyType({}), **options: Any
) -> AsyncIterator[SkeinoSettings]:
    """The settings of an application that has a client already, Motor's or PyMongo's, and closes it itself."""
    client: Any = AsyncIOMotorClient(uri, **habits) if motor else AsyncMongoClient(uri, **habits)
    try:
        yield SkeinoSettings(
            checkpointer_scheme="mongodb",
            checkpointer_uri=None if motor else uri,
            checkpointer_options={"client": client, **options},
        )
        await client.admin.command("ping")  # it is not ours to close
    finally:
        if motor:
            await asyncio.to_thread(client.close)
        else:
            await client.close()


@pytest.fixture(params=DURABLE)
def durable_settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """As `settings`, of the backends that outlive the process."""
    return settings_of(request, tmp_path)


@pytest.fixture
async def persistence(settings: SkeinoSettings) -> AsyncIterator[Persistence]:
    """Both halves, open."""
    async with open_persistence(settings) as opened:
        yield opened


@pytest.fixture
def store(persistence: Persistence) -> MetadataStoreProtocol:
    """An empty metadata store, one backend after the other."""
    return persistence.metadata_store


def settings_of(request: pytest.FixtureRequest, folder: Path) -> SkeinoSettings:
    scheme = request.param
    if scheme == "memory":
        return SkeinoSettings(checkpointer_scheme="memory")
    if scheme == "sqlite":
        return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(folder / "skeino.db"))
    if scheme == "mongodb":
        uri: str = request.getfixturevalue("module_mongodb")
        empty_mongodb(uri)
        return SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=uri)
    if scheme == "redis":
        # Rows in memory, so that what wants owners can be tested: allow_ephemeral_metadata forbids them.
        request.getfixturevalue("monkeypatch").setitem(registry._metadata_stores, "redis", _rows_in_memory)
        return SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=request.getfixturevalue("redis_dsn"))
    dsn: str = request.getfixturevalue("module_database")
    empty(dsn)
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=dsn)


@asynccontextmanager
async def _rows_in_memory(spec: CheckpointerSpec) -> AsyncIterator[InMemoryMetadataStore]:
    yield InMemoryMetadataStore()


def empty(dsn: str) -> None:
    """Delete all rows, but for the schema's versions."""
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' "
            "AND tablename NOT IN ('app_schema', 'checkpoint_migrations') ORDER BY tablename DESC"
        ).fetchall()
        for (table,) in tables:
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


def empty_mongodb(uri: str) -> None:
    """Delete all documents, but for the schema's version."""
    with MongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        for name in database.list_collection_names(filter={"name": {"$ne": "app_schema"}}):
            database[name].delete_many({})
