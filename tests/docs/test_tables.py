"""The tables name what the code has: no more, no less, with the code's own defaults."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import skeino
from benchmarks.__main__ import TOPICS
from benchmarks.__main__ import text_of as figures_as_markdown
from benchmarks.page import FIGURES, page_of, written
from skeino import ConfigurationError, SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, open_persistence
from skeino.persistence.memory import MAX_RUNS
from skeino.persistence.mongodb.clients import OPTIONS as MONGODB_OPTIONS
from skeino.persistence.postgres.connections import OPTIONS
from skeino.persistence.redis.connections import OPTIONS as REDIS_OPTIONS
from skeino.persistence.registry import _BUILT_IN, ALIASES
from skeino.persistence.rows import RUN_STATUSES, THREAD_STATUSES, RunRow
from skeino.persistence.sqlite.database import BUSY_TIMEOUT, OPERATION_TIMEOUT
from skeino_asgi import RunMiddleware
from skeino_asgi.outcome import HTTP_ERROR, RUN_INTERRUPTED, THREAD_BUSY
from tests.docs.blocks import PAGES, ROOT, blocks_of

README = ROOT / "README.md"


def table(page: Path, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is this one, their cells without back-ticks."""
    lines = page.read_text().splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def names_of(rows: list[list[str]]) -> list[str]:
    return [name for row in rows for name in row[0].split(", ")]


def test_settings_with_their_variables_and_defaults() -> None:
    rows = table(README, "field")

    assert names_of(rows) == list(SkeinoSettings.model_fields)
    assert [row[1] for row in rows] == [f"SKEINO_{name}".upper() for name in SkeinoSettings.model_fields]
    shown = [row[2] for row in rows]
    defaults = [field.get_default(call_default_factory=True) for field in SkeinoSettings.model_fields.values()]
    assert shown == [default if isinstance(default, str) else _shown(default) for default in defaults]


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("memory", {"max_runs": MAX_RUNS}),
        ("sqlite", {"setup_schema": True, "busy_timeout": BUSY_TIMEOUT, "operation_timeout": OPERATION_TIMEOUT}),
        ("postgres", {name: default for name, (_, default) in OPTIONS.items()}),
        ("redis", {name: default for name, (_, default) in REDIS_OPTIONS.items()}),
        ("mongodb", {name: default for name, (_, default) in MONGODB_OPTIONS.items()}),
    ],
)
async def test_options_with_their_defaults(scheme: str, options: dict[str, Any]) -> None:
    rows = table(ROOT / "docs/settings.md", f"option of `{scheme}`")
    settings = SkeinoSettings(
        checkpointer_scheme=scheme,
        checkpointer_uri="x",
        checkpointer_options={"0": "is like none of them"},
        allow_ephemeral_metadata=True,
    )

    assert {row[0]: json.loads(row[1]) for row in rows} == options
    with pytest.raises(ConfigurationError, match=rf"known are {', '.join(sorted(options))}\."):
        async with open_persistence(settings):
            pass


def test_schemes_and_their_aliases() -> None:
    rows = table(README, "scheme")

    known = ["sqlite", "sqlite3", "postgres", "postgresql", "mongodb", "mongo", "redis"]
    assert names_of(rows)[:-1] == ["memory (default)", *known]
    assert {*_BUILT_IN, *ALIASES} == {"memory", *known}
    extras = {row[0].split(",")[0].split(" ")[0]: row[3] or None for row in rows[:-1]}
    assert extras == {scheme: built_in.extra for scheme, built_in in _BUILT_IN.items()}


def test_statuses() -> None:
    assert sorted(names_of(table(README, "run status"))) == sorted(RUN_STATUSES)
    assert sorted(names_of(table(README, "thread status"))) == sorted(THREAD_STATUSES)


def test_errors() -> None:
    raised = [
        name
        for name in skeino.__all__
        if isinstance(getattr(skeino, name), type) and issubclass(getattr(skeino, name), Exception)
    ]
    assert sorted(names_of(table(ROOT / "docs/errors.md", "error"))) == sorted(set(raised) - {"SkeinoError"})


def test_what_a_metadata_store_must_do() -> None:
    operations = [name for name in vars(MetadataStoreProtocol) if not name.startswith("_")]
    documented = names_of(table(ROOT / "docs/custom-checkpointer.md", "method"))
    assert sorted(documented) == sorted(operations)


def test_the_ledgers_columns() -> None:
    columns = names_of(table(ROOT / "docs/runs.md", "column"))
    assert set(columns) <= set(RunRow.__annotations__)


def test_the_error_codes_are_the_middlewares_and_the_leases() -> None:
    page = ROOT / "docs/runs.md"
    headings = ("what happened", "what happened to the connection", "how the run ended")
    documented = {row[2] for heading in headings for row in table(page, heading)} - {""}
    written = {
        code
        for file in [*(ROOT / "skeino_asgi").glob("*.py"), ROOT / "skeino/persistence/leases.py"]
        for code in re.findall(r'(?:code=|\bfailed\(|\binterrupted\()\s*"(\w+)"', file.read_text())
    }
    assert documented == written | {"timeout", "exception", HTTP_ERROR, THREAD_BUSY, RUN_INTERRUPTED}


def test_the_middlewares_arguments_with_their_defaults() -> None:
    parameters = inspect.signature(RunMiddleware).parameters
    rows = table(README, "argument")

    assert names_of(rows) == list(parameters)[1:]
    for row in rows:
        if len(names_of([row])) == 1:
            assert row[1] == repr(parameters[row[0]].default).replace("'", '"')


@pytest.mark.parametrize("topic", TOPICS)
def test_the_figures_of_what_it_costs_are_those_that_were_measured(topic: str) -> None:
    result = json.loads(FIGURES.read_text())
    page = page_of(topic).read_text()
    assert written(page, topic, figures_as_markdown(topic, result[topic])) == page


def test_the_drawing_of_the_house_has_every_module() -> None:
    (drawing,) = (block.code for block in blocks_of(ROOT / "CONTRIBUTING.md", "text") if "skeino_asgi/" in block.code)
    modules = {
        file.name
        for package in ("skeino", "skeino_asgi", "skeino/persistence", "skeino/testing")
        for file in (ROOT / package).glob("*.py")
        if file.stem.startswith("__") or not file.stem.startswith("_")
    }
    assert set(re.findall(r"\b\w+\.py\b", drawing)) == modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def _shown(default: object) -> str:
    return "none" if default in (None, {}) else json.dumps(default)
