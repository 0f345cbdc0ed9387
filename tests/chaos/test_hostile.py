"""Short forms of `python -m tests.chaos hostile` and `model`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.bench import bench_of
from tests.chaos.hostile import assault
from tests.chaos.state_machine import compare
from tests.contract.backends import ALL

INPUTS = 1200
EXAMPLES = 25


@pytest.fixture(params=ALL)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str | None]]:
    """A scheme, and the URI of an empty database."""
    scheme: str = request.param
    if scheme in ("postgres", "mongodb"):
        yield scheme, request.getfixturevalue({"postgres": "postgres_dsn", "mongodb": "mongodb_uri"}[scheme])
    else:
        yield scheme, str(tmp_path / "skeino.db") if scheme == "sqlite" else None


@pytest.mark.slow
async def test_hostile_input_ends_in_errors_of_ours_and_leaves_no_secret(database: tuple[str, str | None]) -> None:
    result = await assault(*database, range(INPUTS), seed=20261128)
    assert result.failures == []
    assert result.inputs == INPUTS
    assert result.rows > 0
    assert result.log_lines > 0
    answers = {answer.split(": ")[1] for answer in result.answers}
    assert {"200", "400", "404", "raised by the application", "done", "InvalidInputError", "not found"} <= answers


@pytest.mark.parametrize(
    ("target", "broken", "noticed"),
    [
        ("skeino_asgi.outcome.scrubbed", lambda text, limit=0: text, "a secret stands in a row"),
        ("skeino_asgi.middleware.scrubbed", lambda text, limit=0: text, "a secret stands in a row"),
        ("skeino.persistence.arguments.validate_thread_id", lambda value: value, "TypeError"),
        ("skeino.persistence.stamping.checked_listing", lambda filter, before, limit: filter, "sqlite, saver"),
        ("skeino.runs.Run.must_check", lambda run, thread_id: False, "the victim's state"),
        ("skeino_asgi.correlation._REQUEST_ID", re.compile(r"(?s).*"), "is more than one"),
        ("skeino_asgi.logs._one_word", lambda text: text, "is more than one"),
    ],
)
async def test_a_missing_check_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, broken: Any, noticed: str
) -> None:
    monkeypatch.setattr(target, broken)
    scheme = "sqlite" if "sqlite" in noticed else "memory"
    result = await assault(scheme, str(tmp_path / "skeino.db"), range(1500), seed=1, sockets=False)
    assert any(noticed in failure for failure in result.failures), result.failures[:3]


@pytest.mark.slow
def test_each_backend_answers_as_the_model_does(database: tuple[str, str | None]) -> None:
    with bench_of(*database) as bench:
        compare(bench, EXAMPLES)
