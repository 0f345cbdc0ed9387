"""`python -m skeino sweep`, as people, programs and cron run it."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from skeino.persistence import open_persistence
from skeino.testing import everything, finished, started
from skeino.testing.sweeps import aged, sweeps_of
from tests.startup.command_line import ran, settings_of, uri

__all__ = ["uri"]

run = partial(ran, "sweep")


async def test_what_is_due_is_counted_and_then_done(uri: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=10)
    async with open_persistence(settings_of(uri)) as persistence:
        store = persistence.metadata_store
        await aged(store, "gone")
        await aged(store, "pruned", "keep_latest")
        await aged(store, "busy")
        await aged(store, "kept", None)
        await started(store, "busy")
        await finished(store, "kept", start={"created_at": long_ago}, finished_at=long_ago, thread_status=None)
        before = await everything(store)
        dry = run("--dry-run", "--json", "--uri", uri, SKEINO_RUN_RETENTION_DAYS="9")
        assert (dry.returncode, dry.stderr) == (0, "")
        due = {"dry_run": True, "deleted_threads": 2, "pruned_threads": 1, "deleted_runs": 1}
        assert json.loads(dry.stdout) == due
        assert await everything(store) == before
        done = run("--json", SWEEP_URI=uri, SKEINO_RUN_RETENTION_DAYS="9")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {
            "dry_run": False,
            "busy": False,
            "deleted_threads": 1,
            "pruned_threads": 1,
            "deleted_runs": 1,
            "kept_threads": 1,
            "unprunable_threads": 0,
            "cannot_prune": False,
            "failed_threads": 0,
            "broken_off": False,
        }
        threads, runs = await everything(store)
        assert {row["thread_id"] for row in threads} == {"pruned", "busy", "kept"}
        assert [row["status"] for row in runs] == ["running"]
    told = run("--uri", uri)
    assert told.stdout == (
        "Deleted 0 threads, pruned 0, deleted 0 finished runs.\n"
        "Of the others 1 have an active run, or have changed meanwhile.\n"
    )


async def test_while_another_process_sweeps_it_does_nothing_and_says_so(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/skeino.db"
    async with open_persistence(settings_of(uri)) as persistence:
        await aged(persistence.metadata_store, "t")
        assert await sweeps_of(persistence.metadata_store).begin("w", seconds=60, interval=0) == 0
        done = run("--uri", uri)
        assert (done.returncode, done.stdout) == (0, "Another process is sweeping this database: nothing was done.\n")
        assert json.loads(run("--json", "--uri", uri).stdout) == {"dry_run": False, "busy": True}
        assert await persistence.metadata_store.get_thread("t") is not None


async def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/skeino.db"
    async with open_persistence(settings_of(uri)):
        pass
    quiet = run("--uri", uri)
    shown = run("--uri", uri, FORCE_COLOR="1")
    assert quiet.stderr == ""
    assert "Finished runs" in shown.stderr
    assert shown.stdout == quiet.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["postgresql://u:s3cret@h/x"], "takes options only"),
        (["--uri", "a.db"], "--uri must begin with its scheme"),
        (["--uri", "s3cret@h://x"], "--uri must begin with its scheme"),
        (["--uri", "redis://u:s3cret@h/0"], "--uri must be a URI of sqlite, postgres or mongodb"),
        ([], "The scheme 'memory' keeps no threads and runs beyond its process"),
    ],
)
def test_what_cannot_be_meant_is_status_2_in_a_sentence_without_a_secret(arguments: list[str], told: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "s3cret" not in refused.stdout + refused.stderr


def test_where_nothing_was_made_yet_nothing_is_made(uri: str) -> None:
    for dry_run in (["--dry-run"], []):
        refused = run("--uri", uri, *dry_run)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "lacks the " in refused.stderr or "There is no file" in refused.stderr


def test_a_misspelt_scheme_is_status_2() -> None:
    refused = run(SKEINO_CHECKPOINTER_SCHEME="postgre", SKEINO_CHECKPOINTER_URI="postgresql://u:s3cret@h/x")
    assert refused.returncode == 2
    assert "did you mean 'postgres'" in refused.stderr


def test_a_database_that_is_away_is_status_1_in_a_sentence() -> None:
    failed = run("--uri", "postgresql://u:s3cret@127.0.0.1:9/x")
    assert failed.returncode == 1
    assert failed.stderr.startswith("PostgreSQL at 127.0.0.1:9/x cannot be reached")
    assert "s3cret" not in failed.stdout + failed.stderr


def test_a_wrong_option_is_told_to_programs_as_well() -> None:
    refused = run("--json", "--nope")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"].startswith("An option is missing or wrong")
    assert "--nope" in refused.stderr


def test_help_names_the_options_and_statuses() -> None:
    shown = run("--help").stdout
    for told in ("--dry-run", "--uri", "SWEEP_URI", "--json", "Exit status", "SKEINO_RUN_RETENTION_DAYS"):
        assert told in shown
