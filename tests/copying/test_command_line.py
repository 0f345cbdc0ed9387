"""`python -m skeino copy`, as people and programs run it."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from skeino import SkeinoSettings
from skeino.copying import survey
from skeino.persistence import open_persistence
from tests.copying.conftest import Places
from tests.copying.house import all_rows, furnish
from tests.copying.test_resuming import THREADS, source, started, until_some_have_arrived

ROOT = Path(__file__).parents[2]

many_threads = source  # a house that takes a while


@pytest.fixture
async def house(place: Places) -> SkeinoSettings:
    """A furnished house in a SQLite file."""
    settings = place("sqlite")
    await furnish(settings)
    return settings


def run(*arguments: str, code: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKEINO_", "COPY_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
    start = ["-m", "skeino"] if code is None else ["-c", code]
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)


def uri_of(settings: SkeinoSettings) -> str:
    assert settings.checkpointer_uri is not None
    return settings.checkpointer_uri


async def test_for_people(house: SkeinoSettings, place: Places) -> None:
    target = place("sqlite")
    result = run("copy", "--from", uri_of(house), "--to", uri_of(target))

    assert (result.returncode, result.stderr) == (0, "")
    assert "Copied and verified." in result.stdout
    assert "2 runs are active at the source" in result.stdout
    assert await all_rows(target) == await all_rows(house)


@pytest.mark.postgres
@pytest.mark.mongodb
async def test_for_programs_with_addresses_from_the_environment(house: SkeinoSettings, place: Places) -> None:
    postgres, mongodb = place("postgres"), place("mongodb")
    first = run("copy", "--json", COPY_FROM=uri_of(house), COPY_TO=uri_of(postgres))
    second = run("copy", "--json", COPY_FROM=uri_of(postgres), COPY_TO=uri_of(mongodb))

    counted = (await survey(house)).as_json()
    for result in (first, second):
        assert (result.returncode, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        assert report["verified"] is True
        assert report["dry_run"] is False
        assert report["differences"] == []
        for name in ("threads", "runs", "checkpoints", "pending_writes"):
            assert report[name] == {"found": counted[name]["found"], "copied": counted[name]["found"]}
    assert await all_rows(mongodb) == await all_rows(house)


async def test_differences_are_told_and_are_status_1(house: SkeinoSettings, place: Places) -> None:
    target = place("sqlite")
    assert run("copy", "--from", uri_of(house), "--to", uri_of(target)).returncode == 0
    async with open_persistence(target) as there:
        await there.metadata_store.update_thread("plain", metadata={"changed": True})

    people = run("copy", "--from", uri_of(house), "--to", uri_of(target))
    programs = run("copy", "--from", uri_of(house), "--to", uri_of(target), "--json")

    assert (people.returncode, programs.returncode) == (1, 1)
    sentence = "The thread 'plain' differs at the target in metadata, updated_at, and was left as it is there."
    assert sentence in people.stdout
    assert "The copy is not complete." in people.stdout
    assert json.loads(programs.stdout)["differences"] == [sentence]


async def test_a_dry_run_only_counts(house: SkeinoSettings, place: Places, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    target = uri_of(place("sqlite"))
    people = run("copy", "--dry-run", "--from", uri_of(house), "--to", target)
    programs = run("copy", "--dry-run", "--json", "--from", uri_of(house))

    assert (people.returncode, programs.returncode) == (0, 0)
    counted = json.loads(programs.stdout)
    assert (counted["dry_run"], counted["verified"]) == (True, None)
    assert counted["checkpoints"]["copied"] == 0 < counted["checkpoints"]["found"]
    assert str(counted["checkpoints"]["found"]) in people.stdout
    assert [name for name in sorted(os.listdir(tmp_path)) if name not in before] == []


REFUSED = [
    (["--to", "sqlite:///b.db"], "--from"),
    (["--from", "sqlite:///a.db"], "There is no target: give --to, or the variable COPY_TO."),
    (["--from", "a.db", "--to", "sqlite:///b.db"], "--from must begin with its scheme"),
    (["--from", "redis://u:s3cret@h/0", "--to", "sqlite:///b.db"], "'redis', which keeps no threads and runs"),
    (["--from", "memory://", "--to", "sqlite:///b.db"], "'memory', which keeps nothing beyond its process"),
    (["--from", "mysql://u:s3cret@h/0", "--to", "sqlite:///b.db"], "'mysql', which is not known"),
    (["postgresql://u:s3cret@h/0", "--from", "sqlite:///a.db", "--to", "sqlite:///b.db"], "takes options only"),
    (["--form=postgresql://u:s3cret@h/0"], "--form"),
    (["--from", "postgresql://u:s3cret@h/x@y/z", "--to", "sqlite:///b.db"], "percent-encode"),
    (["--from", "sqlite:///a.db", "--to", "sqlite:///b.db", "--concurrency", "0"], "--concurrency"),
    (["--from", "mongodb+srv://u:s3cret@h:1/x", "--to", "sqlite:///b.db"], "PyMongo refuses"),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_meant_is_status_2_in_a_sentence_without_a_secret(arguments: list[str], told: str) -> None:
    result = run("copy", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert "s3cret" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_a_database_that_is_away_or_empty_is_status_1(place: Places) -> None:
    empty, other = uri_of(place("sqlite")), uri_of(place("sqlite"))
    away = run("copy", "--from", "postgresql://u:s3cret@127.0.0.1:9/x", "--to", other)
    missing = run("copy", "--json", "--from", empty, "--to", other)
    assert (away.returncode, missing.returncode) == (1, 1)
    assert away.stderr.startswith("PostgreSQL at 127.0.0.1:9/x cannot be reached: the connection was refused")
    assert missing.stderr.startswith("There is no file")
    assert away.stdout == ""
    assert json.loads(missing.stdout) == {"error": missing.stderr.strip()}
    assert len(away.stderr.splitlines()) == len(missing.stderr.splitlines()) == 1


async def test_interrupted_by_the_keyboard_it_says_how_to_go_on(many_threads: SkeinoSettings, place: Places) -> None:
    target = place("sqlite")
    lock = sqlite3.connect(uri_of(target).removeprefix("sqlite:///"), isolation_level=None, timeout=10)
    async with open_persistence(target) as there:
        process = started(many_threads, target, errors=subprocess.PIPE)
        await until_some_have_arrived(there.checkpointer)
        with closing(lock):
            lock.execute("BEGIN IMMEDIATE")  # it must not be over before the signal comes
            os.kill(process.pid, signal.SIGINT)
            await asyncio.sleep(0.5)
        _, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 130
    assert errors.decode() == "Interrupted: what was copied stays; run the same command again to go on.\n"

    again = run("copy", "--json", COPY_FROM=uri_of(many_threads), COPY_TO=uri_of(target))
    assert again.returncode == 0
    assert 0 < json.loads(again.stdout)["checkpoints"]["copied"] < 3 * len(THREADS)


def test_progress_is_shown_on_a_terminal_only(place: Places) -> None:
    code = "from skeino.__main__ import main; import sys; sys.exit(main())"
    arguments = ["copy", "--dry-run", "--json", "--from", uri_of(place("sqlite"))]
    asyncio.run(furnish(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=arguments[-1])))
    quiet = run(*arguments, code=code)
    shown = run(*arguments, code=code, FORCE_COLOR="1")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "State of threads" in shown.stderr
    assert json.loads(shown.stdout) == json.loads(quiet.stdout)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_it_says_which(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from skeino.__main__ import main; sys.exit(main())"
    result = run("copy", code=code)
    assert result.returncode == 2
    assert result.stderr.startswith("The command line needs the package")
    assert result.stderr.endswith("run pip install 'skeino-asgi[cli]'.\n")
    assert len(result.stderr.splitlines()) == 1


def test_help_names_the_command_its_options_and_statuses() -> None:
    assert "copy" in run("--help").stdout
    shown = run("copy", "--help").stdout
    for told in ("--from", "--to", "COPY_FROM", "COPY_TO", "--dry-run", "--json", "--concurrency", "Exit status"):
        assert told in shown
