"""What the scheme `mongodb` connects to: the deployment that a URI names, or a client that the application has."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass
from typing import Any, Final

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ConfigurationError as PyMongoConfigurationError
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

from skeino.errors import ConfigurationError
from skeino.persistence.registry import CheckpointerSpec, beginning_of

Document = dict[str, Any]

NUMBER: Final = (int, float)
OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "setup_schema": (bool, True),
    "pool_max_size": (int, 10),
    "pool_timeout": (NUMBER, 5.0),
    "connect_timeout": (NUMBER, 5.0),
    "operation_timeout": (NUMBER, 30.0),
    "client": (object, None),
}
"""`checkpointer_options` of scheme `mongodb`, with their defaults; times are seconds.

PyMongo's own waits are 20 and 30 seconds, or unbounded.
"""

APP_NAME: Final = "skeino"
LEASES_APP_NAME: Final = "skeino leases"
"""How the server knows clients that are made here, unless the URI names them otherwise."""

CHECKPOINTS_DATABASE: Final = "checkpointing_db"  # where LangGraph's saver keeps them by default
METADATA_DATABASE: Final = "skeino"


@dataclass(frozen=True, slots=True)
class Clients:
    """An asynchronous client for threads and runs, and a blocking one for LangGraph's saver. Neither has connected."""

    asynchronous: AsyncMongoClient[Document]
    """PyMongo's, or Motor's, which behaves alike but for `aggregate` and `start_session`."""
    blocking: MongoClient[Document]
    address: Address
    ours: tuple[AsyncMongoClient[Document] | MongoClient[Document], ...]
    """Those that were made here, and are to be closed."""
    places: int
    """Operations of the asynchronous client that can wait in the server at the same time."""

    @property
    def write_concern(self) -> WriteConcern:
        """The majority and the journal, unless the URI or the application's client says otherwise."""
        said = self.blocking.write_concern
        return said if said.document else WriteConcern("majority", j=True)

    @property
    def read_concern(self) -> ReadConcern:
        """As the URI or the application's client says, but for those that transactions have not."""
        said = self.blocking.read_concern
        return said if said.level in ("local", "majority", "snapshot") else ReadConcern()


def clients_of(spec: CheckpointerSpec, options: Document) -> Clients:
    """Both clients; options are `OPTIONS`, checked.

    Raises:
        ConfigurationError: the URI is none that MongoDB understands, PyMongo refuses its options, or the
            application's client cannot be used.
    """
    given = options["client"]
    if given is None:
        address = address_of(spec)
        parameters = _parameters(options, address)
        asynchronous: AsyncMongoClient[Document] = _made(AsyncMongoClient, address, parameters)
        blocking: MongoClient[Document] = _made(MongoClient, address, parameters)
        return Clients(asynchronous, blocking, address, (asynchronous, blocking), _pool_size(asynchronous, options))
    if "connect_timeout" in spec.options:
        raise ConfigurationError(
            "The option connect_timeout has no effect on a client that is there already: give that one "
            "serverSelectionTimeoutMS."
        )
    if _is_motor(given):
        address = _address_of_client(given.delegate, given.get_io_loop(), spec)
        return Clients(given, given.delegate, address, (), min(_pool_size(given, options), _threads_of_motor()))
    if isinstance(given, AsyncMongoClient):
        address = _address_of_client(given, None, spec)
        if not (spec.uri or "").strip():
            raise ConfigurationError(
                "The option client has PyMongo's AsyncMongoClient, and LangGraph's saver needs a blocking one beside "
                "it: set checkpointer_uri to the same deployment."
            )
        blocking = _made(MongoClient, address, _parameters(options, address))
        return Clients(given, blocking, address, (blocking,), _pool_size(given, options))
    raise ConfigurationError(
        f"The option client must be Motor's AsyncIOMotorClient or PyMongo's AsyncMongoClient, not "
        f"{type(given).__name__}."
    )


def client_for_leases(clients: Clients, limit: float) -> tuple[MongoClient[Document], bool]:
    """A client with one connection, that of nobody else, and whether it is to be closed: of an application's Motor
    client that comes without a URI there is no other like it.

    Args:
        clients: those of the deployment.
        limit: seconds for each wait.
    """
    if not clients.address.uri:
        return clients.blocking, False
    waits = ("waitQueueTimeoutMS", "socketTimeoutMS", "connectTimeoutMS", "serverSelectionTimeoutMS")
    parameters = {"appname": LEASES_APP_NAME, "maxPoolSize": 1, **dict.fromkeys(waits, round(1000 * limit))}
    return _made(MongoClient, clients.address, parameters), True


@dataclass(frozen=True, slots=True)
class Address:
    """A checked URI."""

    uri: str
    place: str
    database: str | None
    given: frozenset[str]
    """The names of the URI's options, in lower case."""

    def __repr__(self) -> str:
        return f"Address({self.place!r})"


def address_of(spec: CheckpointerSpec) -> Address:
    """The spec's URI, checked without a look-up in the network.

    Raises:
        ConfigurationError: it is no MongoDB URI; the message repeats nothing of it.
    """
    uri = spec.required_uri("'mongodb://localhost:27017/mydb'").strip()
    prefix, separator, rest = uri.partition("://")
    if not separator:
        raise ConfigurationError("checkpointer_uri is no MongoDB URI: write mongodb://user@host:27017/database.")
    if prefix not in ("mongodb", "mongodb+srv"):
        raise ConfigurationError(
            f"The scheme 'mongodb' needs a MongoDB URI, but checkpointer_uri {beginning_of(uri)}: "
            "set checkpointer_scheme to match it, or begin it with mongodb://."
        )
    if prefix == "mongodb+srv":  # of a look-up in the DNS no check is made here: PyMongo does it when it connects
        before, question, query = rest.partition("?")
        rest = before + question + "&".join(one for one in query.split("&") if not one.lower().startswith("srv"))
    parsed = _parsed(f"mongodb://{rest}")
    # An '@' or a '/' of the password that stands for itself cuts the URI there: then the rest of the password is in
    # what would be the database's name or an option's.
    if (
        parsed is None or "@" in rest.partition("/")[2]
    ):  # the parser's error repeats parts of the URI: ours is raised outside, without a reference
        raise ConfigurationError(
            "checkpointer_uri is no MongoDB URI: write mongodb://user@host:27017/database, percent-encode special "
            "characters of the password, and check the options after the '?'."
        )
    if parsed["collection"]:
        raise ConfigurationError("checkpointer_uri names a collection: a database's name has no dot.")
    given = {name.lower(): value for name, value in parsed["options"].items()}
    if given.get("w") == 0:
        raise ConfigurationError("checkpointer_uri has w=0, with which nothing is ever known to be stored: remove it.")
    nodes = [host if port is None or prefix.endswith("srv") else f"{host}:{port}" for host, port in parsed["nodelist"]]
    place = f"{','.join(nodes)}/{parsed['database'] or METADATA_DATABASE}"
    return Address(uri, place, parsed["database"], frozenset(given))


def _parsed(uri: str) -> Document | None:
    try:
        return parse_uri(uri)
    except (PyMongoError, ValueError, TypeError, OSError):
        return None


def _parameters(options: Document, address: Address) -> Document:
    """What both clients are told besides the URI; what the URI says itself wins, but for where to read."""
    parameters = {
        "appname": APP_NAME,
        "maxPoolSize": options["pool_max_size"],
        "waitQueueTimeoutMS": round(1000 * options["pool_timeout"]),
        "socketTimeoutMS": round(1000 * options["operation_timeout"]),  # what a thread waits, whoever gave up before
        "connectTimeoutMS": round(1000 * options["connect_timeout"]),
        "serverSelectionTimeoutMS": round(1000 * options["connect_timeout"]),
        "w": "majority",  # what was acknowledged survives a change of the primary
        "journal": True,  # and a crash of a server that stands alone
    }
    return {name: value for name, value in parameters.items() if name.lower() not in address.given} | {
        "readPreference": "primary",  # a graph that reads a lagging copy loses what was said last
    }


def _made(kind: Any, address: Address, parameters: Document) -> Any:
    """A client, not connected yet.

    Raises:
        ConfigurationError: PyMongo refuses the URI's options, taken together.
    """
    try:
        return kind(address.uri, connect=False, **parameters)
    except (PyMongoError, ValueError, TypeError, OSError) as exc:
        problem = type(exc).__name__
    raise ConfigurationError(
        f"PyMongo refuses the options of checkpointer_uri ({problem}): do they fit together, and do the files exist?"
    )


def _pool_size(client: Any, options: Document) -> int:
    size = client.options.pool_options.max_pool_size
    return int(size) if size is not None and math.isfinite(size) else int(options["pool_max_size"])


def _threads_of_motor() -> int:
    """Motor's clients share a few threads in which they block; its default is five for each processor."""
    workers = getattr(getattr(sys.modules.get("motor.frameworks.asyncio"), "_EXECUTOR", None), "_max_workers", 5)
    return int(workers)


def _is_motor(client: Any) -> bool:
    """Told by its name: whoever has such a client has imported Motor, and nobody else needs to."""
    kind = type(client)
    return kind.__module__.partition(".")[0] == "motor" and hasattr(client, "delegate")


def _address_of_client(
    client: AsyncMongoClient[Document] | MongoClient[Document],
    loop: asyncio.AbstractEventLoop | None,
    spec: CheckpointerSpec,
) -> Address:
    """Where the application's client is connected to, and which database of it is meant.

    Raises:
        ConfigurationError: the client is of another event loop, or acknowledges nothing, or the URI names another
            database.
    """
    if loop is not None and loop is not asyncio.get_running_loop():
        raise ConfigurationError("The option client has a client of another event loop: make it where it is used.")
    if not client.write_concern.acknowledged:
        raise ConfigurationError(
            "The option client has a client with w=0, with which nothing is ever known to be stored."
        )
    try:
        database: str | None = client.get_default_database().name
    except PyMongoConfigurationError:  # its URI names none
        database = None
    uri, given = "", frozenset[str]()
    if spec.uri and spec.uri.strip():
        address = address_of(spec)
        uri, given = address.uri, address.given
        if database is not None and address.database not in (None, database):
            raise ConfigurationError(
                "checkpointer_uri and the client of option client name different databases: leave one of them out."
            )
        database = database or address.database
    nodes = ",".join(f"{host}:{port}" for host, port in client.topology_description.server_descriptions())
    return Address(uri, f"{nodes}/{database or METADATA_DATABASE}", database, given)
