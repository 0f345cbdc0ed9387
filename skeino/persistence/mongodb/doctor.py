"""What can be wrong between an application and its MongoDB database. Nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo import ASCENDING
from pymongo.errors import OperationFailure

from skeino.errors import ConfigurationError, SkeinoError
from skeino.persistence.checks import (
    SAMPLE,
    Check,
    checked,
    now,
    of_clock,
    of_connections,
    of_orphans,
    of_schema,
    of_workers,
    unreachable,
)
from skeino.persistence.mongodb import schema
from skeino.persistence.mongodb.connections import OLDEST, OLDEST_WIRE, MongoDatabase, opened
from skeino.persistence.mongodb.documents import Document
from skeino.persistence.registry import CheckpointerSpec

BESIDE_THE_POOLS: Final = 7
"""Connections of a process: that of its lease, and two with which each of its three clients watches a server."""

_CHECKS: Final = ("server", "schema", "rights", "pooler", "connections", "orphans", "workers", "clock")
_RIGHTS: Final = ("find", "insert", "update", "remove")
_CHUNK: Final = 1000


async def examine(spec: CheckpointerSpec, workers: int, lease_seconds: float) -> AsyncIterator[Check]:
    """Look at the spec's database; the arguments are those of every backend's.

    Raises:
        ConfigurationError: the URI is none that MongoDB understands, or an option is wrong.
    """
    reached = False
    try:
        async with opened(spec) as (database, options):
            reached = True
            patient = _Patient(database, options["pool_max_size"], workers, lease_seconds)
            yield Check("reachable", "ok", f"MongoDB {await patient.version()} at {database.place} answers.")
            async for check in checked({name: getattr(patient, f"of_{name}") for name in _CHECKS}):
                yield check
    except ConfigurationError:
        raise
    except SkeinoError as exc:
        if reached:
            raise
        for check in unreachable(exc, _CHECKS):
            yield check


class _Patient:
    """The database, as one opening sees it."""

    def __init__(self, database: MongoDatabase, pool_size: int, workers: int, lease_seconds: float) -> None:
        self._database = database
        self._pool_size = pool_size
        self._workers = workers
        self._lease_seconds = lease_seconds
        self._has_schema = False

    async def version(self) -> str:
        """The server's."""
        return str((await self._admin("buildInfo"))["version"])

    async def _admin(self, command: str, **arguments: Any) -> Document:
        async with self._database.operation():
            answer: Document = await self._database.client.admin.command(command, **arguments)
            return answer

    async def of_server(self) -> Check:
        if self._database.wire_version < OLDEST_WIRE:
            sentence = f"MongoDB {await self.version()} lacks what is needed."
            return Check("server", "failure", sentence, f"Upgrade it to {OLDEST} or later.")
        if not self._database.transactions:
            sentence = "The server stands alone, without transactions: a process that dies may leave things half done."
            return Check("server", "warning", sentence, "Make it a replica set; one member is enough.")
        concern = self._database.concerns["write_concern"].document
        if concern.get("w") != "majority" or concern.get("j") is False:
            sentence = f"What is acknowledged was written with {concern}: it may be lost when the primary changes."
            return Check("server", "warning", sentence, "Leave w and journal out of the URI.")
        return Check("server", "ok", "It has transactions, and keeps what it has acknowledged.")

    async def of_schema(self) -> Check:
        metadata = self._database.metadata
        async with self._database.operation():
            state = await schema.read_state(metadata, self._database.client[self._database.checkpoints_name])
            self._has_schema = not state.missing
            check = of_schema(state)
            if check.outcome != "ok":
                return check
            lost = [
                f"{name}.{index.document['name']}"
                for name, indexes in schema.INDEXES.items()
                for index in indexes
                if index.document["name"] not in await metadata[name].index_information()
            ]
        if lost:
            sentence = f"Indexes are missing that the schema says are there: {', '.join(lost)}."
            return Check("schema", "warning", sentence, "Run what python -m skeino schema --print shows.")
        return check

    async def of_rights(self) -> Check:
        answer = await self._admin("connectionStatus", showPrivileges=True)
        status = answer["authInfo"]
        if not status["authenticatedUsers"]:
            sentence = "Nobody is logged in, and the server does not mind: whoever reaches it may do everything."
            return Check("rights", "warning", sentence, "Turn its authorization on, and name a user in the URI.")
        names = sorted({self._database.metadata.name, self._database.checkpoints_name})
        may = {name: _actions_on(name, status["authenticatedUserPrivileges"]) for name in names}
        lacking = [f"{right} in {name}" for name in names for right in _RIGHTS if right not in may[name]]
        if not lacking:
            return Check("rights", "ok", "The user may read and write.")
        sentence = f"The user lacks {', '.join(lacking)}, as far as its privileges on whole databases go."
        return Check("rights", "failure", sentence, f"Grant it readWrite on {' and '.join(names)}.")

    async def of_pooler(self) -> Check:
        return Check("pooler", "skipped", "MongoDB has none: each client has its own pool.")

    async def of_connections(self) -> Check:
        try:
            status = (await self._admin("serverStatus"))["connections"]
        except SkeinoError as exc:
            if not isinstance(exc.__cause__ or exc.__context__, OperationFailure):
                raise
            sentence = "The user may not see how many connections the server has."
            return Check("connections", "skipped", sentence, "A user with clusterMonitor may run this command.")
        wanted = 2 * self._pool_size + BESIDE_THE_POOLS
        available = status["available"] + status["current"]
        return of_connections(wanted, self._workers, available, "the server's limit, those of others included")

    async def of_orphans(self) -> Check:
        if not self._has_schema:
            return Check("orphans", "skipped", "There are no collections.")
        checkpoints = self._database.client[self._database.checkpoints_name]["checkpoints"]
        threads = self._database.metadata[schema.THREADS]
        names: list[str] = []
        there: set[str] = set()
        async with self._database.operation():
            while len(names) < SAMPLE:  # from one thread to the next by the index
                beyond = {"thread_id": {"$gt": names[-1] if names else ""}}
                found = await checkpoints.find_one(beyond, {"thread_id": 1}, sort=[("thread_id", ASCENDING)])
                if found is None:
                    break
                names.append(found["thread_id"])
            for begin in range(0, len(names), _CHUNK):
                some = {"_id": {"$in": names[begin : begin + _CHUNK]}}
                there |= {row["_id"] for row in await threads.find(some, {"_id": 1}).to_list()}
        return of_orphans([name for name in names if name not in there], len(names))

    async def of_workers(self) -> Check:
        if not self._has_schema:
            return Check("workers", "skipped", "There are no collections.")
        metadata = self._database.metadata
        async with self._database.operation():
            moment = await self._clock()
            leases = await metadata[schema.WORKERS].find({}, {"expires_at": 1, "lost_at": 1}).to_list()
            runs = await self._database.aggregate(
                metadata[schema.RUNS],
                [{"$match": {"active": True}}, {"$group": {"_id": "$worker_id", "number": {"$sum": 1}}}],
            )
        alive = {one["_id"]: one["lost_at"] is None and _aware(one["expires_at"]) >= moment for one in leases}
        without = sum(one["number"] for one in runs if one["_id"] not in alive)
        lost = sum(one["number"] for one in runs if alive.get(one["_id"]) is False)
        return of_workers(sum(alive.values()), without, lost, self._lease_seconds)

    async def of_clock(self) -> Check:
        before = now()
        moment = await self._clock()
        return of_clock(moment, before - timedelta(milliseconds=1), now())  # it has milliseconds only

    async def _clock(self) -> datetime:
        return _aware((await self._database.client.admin.command("hello"))["localTime"])


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _actions_on(database: str, privileges: list[Document]) -> set[str]:
    """What may be done in all collections of the database."""
    actions: set[str] = set()
    for privilege in privileges:
        resource = privilege["resource"]
        whole = resource.get("collection") == "" and resource.get("db") in ("", database)
        if whole or resource.get("anyResource"):
            actions |= {*privilege["actions"]}
    return actions
