"""Writes docs/conformance.md: LangGraph's own suite for checkpointers, on each saver, ours and the stock ones.

    make conformance

It brings up the servers that it needs, in under a minute.
"""

import asyncio
import platform
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path

from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import CapabilityReport
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from skeino import SkeinoSettings
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver
from tests.servers import mongodb, postgres

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
CAPABILITIES = ("put", "put_writes", "get_tuple", "list", "delete_thread", "delete_for_runs", "copy_thread", "prune")
"""The suite's names; the last three are optional."""

SCHEMES = {
    "memory": "langgraph-checkpoint",
    "sqlite": "langgraph-checkpoint-sqlite",
    "postgres": "langgraph-checkpoint-postgres",
    "mongodb": "langgraph-checkpoint-mongodb",
}
"""Each scheme with the distribution of its stock saver."""

Savers = Callable[[], AbstractAsyncContextManager[Saver]]

TEXT = """\
# Conformance

LangGraph has a test-suite for checkpointers, `langgraph-checkpoint-conformance`. This page was written by
`make conformance`, which runs it against real servers; `make test` runs it too, on the savers that skeino opens, and
compares.

## The savers that skeino opens

Stamped, each inside a run. The number of tests that passed, and how many there are:

{ours}

## LangGraph's own savers, as they are

{stock}

“–”: the saver does not have the operation.

Versions: {versions}.
"""


def cell(report: CapabilityReport, capability: str) -> str:
    """What the table says of one operation of one saver."""
    result = report.results[capability]
    if not result.detected:
        return "–"
    return f"{result.tests_passed} of {result.tests_passed + result.tests_failed}"


async def report_on(name: str, savers: Savers) -> CapabilityReport:
    """The suite's report; it asks for a fresh saver for each capability."""

    @checkpointer_test(name=name)
    async def fresh() -> AsyncIterator[Saver]:
        async with savers() as saver:
            yield saver

    report: CapabilityReport = await validate(fresh)
    return report


def ours(settings: SkeinoSettings) -> Savers:
    """The stamped saver of a scheme, in a run."""

    @asynccontextmanager
    async def open_saver() -> AsyncIterator[Saver]:
        tracker = RunTracker(settings)
        async with tracker.lifespan(), tracker.run():
            yield tracker.checkpointer

    return open_saver


def stock(scheme: str, uri: str) -> Savers:
    """LangGraph's saver, opened as its documentation does."""

    @asynccontextmanager
    async def open_saver() -> AsyncIterator[Saver]:
        if scheme == "memory":
            yield InMemorySaver()
        elif scheme == "sqlite":
            async with AsyncSqliteSaver.from_conn_string(uri) as sqlite:
                yield sqlite
        elif scheme == "postgres":
            async with AsyncPostgresSaver.from_conn_string(uri) as postgresql:
                await postgresql.setup()
                yield postgresql
        else:
            with MongoDBSaver.from_conn_string(uri) as mongo:
                yield mongo

    return open_saver


@contextmanager
def places() -> Iterator[dict[str, Callable[[], str]]]:
    """For each scheme, what makes the URI of an empty place; the servers run meanwhile."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres_server = stack.enter_context(postgres.running_postgres(postgres.find_postgres()))
        mongodb_server = stack.enter_context(mongodb.running_mongodb(mongodb.find_mongodb()))
        files = (str(folder / f"{number}.db") for number in range(1000))
        yield {
            "memory": str,
            "sqlite": lambda: next(files),
            "postgres": postgres_server.create_database,
            "mongodb": mongodb_server.create_database,
        }


def settings_of(scheme: str, uri: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri or None)


def table(reports: dict[str, CapabilityReport]) -> str:
    """In Markdown, a line for each operation."""
    lines = [f"| operation | {' | '.join(f'`{scheme}`' for scheme in reports)} |", "|---" * (len(reports) + 1) + "|"]
    lines.extend(
        f"| `{capability}` | {' | '.join(cell(report, capability) for report in reports.values())} |"
        for capability in CAPABILITIES
    )
    return "\n".join(lines)


def documented(scheme: str) -> dict[str, str]:
    """The cells that the page has for one of our savers."""
    lines = PAGE.read_text().partition("## LangGraph's own savers")[0].splitlines()
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    column = rows[0].index(scheme)
    return {row[0]: row[column] for row in rows[2:]}


async def main() -> None:
    with places() as uris:
        of_ours = {scheme: await report_on(scheme, ours(settings_of(scheme, uri()))) for scheme, uri in uris.items()}
        of_stock = {scheme: await report_on(scheme, stock(scheme, uri())) for scheme, uri in uris.items()}
    distributions = ["langgraph", "langgraph-checkpoint-conformance", *SCHEMES.values()]
    versions = [f"{name} {version(name)}" for name in distributions]
    text = TEXT.format(
        ours=table(of_ours),
        stock=table(of_stock),
        versions=", ".join([f"Python {platform.python_version()}", *versions]),
    )
    PAGE.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    asyncio.run(main())
