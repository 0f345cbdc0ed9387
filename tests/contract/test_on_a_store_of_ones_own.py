"""`skeino.testing` in another's project: its own pytest settings, its own store, and a suite that can fail."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = """
import asyncio

import pytest_asyncio

from skeino.persistence import InMemoryMetadataStore
from skeino.testing import MetadataStoreContract


class TestMyStore(MetadataStoreContract):
    @pytest_asyncio.fixture
    async def store(self):
        yield InMemoryMetadataStore()
"""
ANOTHER = """

@pytest_asyncio.fixture(scope="session")
async def one_loop():
    return asyncio.get_running_loop()


class TestAnother(MetadataStoreContract):
    @pytest_asyncio.fixture
    async def store(self, one_loop):
        assert asyncio.get_running_loop() is one_loop
        yield InMemoryMetadataStore()
"""
OF_THE_EXAMPLE = """
import pytest_asyncio

from examples.custom_backend import open_mydb_runs
from skeino.persistence import CheckpointerSpec
from skeino.testing import MetadataStoreContract


class TestMyStore(MetadataStoreContract):
    @pytest_asyncio.fixture
    async def store(self, tmp_path):
        async with open_mydb_runs(CheckpointerSpec("mydb", str(tmp_path / "mydb.db"))) as store:
            yield store
"""
OF_THE_GUIDE = """
import asyncio

from tests.docs.blocks import run_python

TestMyStore = asyncio.run(run_python("docs/custom-checkpointer.md"))["TestMyStore"]
"""

# Each is a store with one mistake, and the promise that it breaks.
MISTAKES = {
    "any worker ends a run": (
        "test_only_the_worker_that_owns_a_run_ends_it",
        """
    async def finish_run(self, finish):
        row = await self.get_run(finish["run_id"])
        return await super().finish_run({**finish, "worker_id": row["worker_id"]} if row else finish)
""",
    ),
    "an end is written over": (
        "test_a_terminal_status_never_changes",
        """
    async def finish_run(self, finish):
        await super().finish_run(finish)
        return True
""",
    ),
    "a second start changes the run": (
        "test_starting_twice_changes_nothing",
        """
    async def start_run(self, run_id, **start):
        await super().start_run(run_id, **start)
        await self.update_run(run_id, metadata=start.get("metadata") or {})
""",
    ),
    "the owner is not looked at": (
        "test_a_thread_of_another_owner_is_treated_as_none",
        """
    async def get_thread(self, thread_id, *, owner=None):
        return await super().get_thread(thread_id)
""",
    ),
    "the order is wrong": (
        "test_threads_sort_by_each_column_and_then_by_id",
        """
    async def search_threads(self, **search):
        return (await super().search_threads(**search))[::-1]
""",
    ),
    "the status is no condition": (
        "test_runs_are_found_as_in_the_model",
        """
    async def search_runs(self, **search):
        search.pop("status", None)
        return await super().search_runs(**search)
""",
    ),
    "rows are shared": (
        "test_what_came_out_may_be_changed",
        """
    async def get_run(self, run_id, **owner):
        row = await super().get_run(run_id, **owner)
        return vars(self).setdefault("shared", {}).setdefault(repr(row), row)
""",
    ),
    "times have no zone": (
        "test_times_are_aware_utc_to_the_microsecond",
        """
    async def get_thread(self, thread_id, **owner):
        row = await super().get_thread(thread_id, **owner)
        return row and {**row, "created_at": row["created_at"].replace(tzinfo=None)}
""",
    ),
    "a busy thread is deleted": (
        "test_a_busy_thread_is_not_deleted",
        """
    async def delete_thread(self, thread_id, **options):
        await super().delete_thread(thread_id, **{**options, "force": True})
""",
    ),
    "reading and writing are two steps": (
        "test_metadata_merged_at_once_is_all_there",
        """
    async def update_run(self, run_id, *, metadata, **owner):
        before = await self.get_run(run_id, **owner)
        await asyncio.sleep(0)
        self._runs[run_id]["metadata"] = {**before["metadata"], **metadata}
        return await self.get_run(run_id, **owner)
""",
    ),
    "bad ids are let through": (
        "test_bad_thread_ids_are_refused",
        """
    async def get_thread(self, thread_id, **owner):
        try:
            return await super().get_thread(thread_id, **owner)
        except ValueError:
            return None
""",
    ),
}


@dataclass(frozen=True)
class Report:
    """What pytest said: each test's failure by `Class.test`, None where it passed, and all that was printed."""

    failures: dict[str, str | None]
    printed: str


def run_pytest(folder: Path, code: str, *which: str, mode: str = "strict", loop: str = "function") -> Report:
    """Run this code as the only test module of a project of its own."""
    (folder / "test_my_store.py").write_text(code)
    (folder / "pytest.ini").write_text(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = {loop}\n"
        f"asyncio_default_test_loop_scope = {loop}\nfilterwarnings = error\n"
    )
    names = [f"test_my_store.py::{one}" for one in which] or ["test_my_store.py"]
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    failures: dict[str, str | None] = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        problem = case.find("failure") if case.find("error") is None else case.find("error")
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        assert case.find("skipped") is None, name
        failures[name] = None if problem is None else problem.get("message", "")
    return Report(failures, done.stdout)


@pytest.mark.parametrize(
    ("code", "mode"),
    [
        pytest.param(RIGHT, "strict", id="strict"),
        pytest.param(RIGHT.replace("pytest_asyncio", "pytest"), "auto", id="auto"),
        pytest.param(OF_THE_EXAMPLE, "strict", id="the example's"),
        pytest.param(OF_THE_GUIDE, "strict", id="the guide's"),
    ],
)
def test_a_store_that_keeps_the_contract_passes(tmp_path: Path, code: str, mode: str) -> None:
    report = run_pytest(tmp_path, code, mode=mode)
    assert [name for name, failure in report.failures.items() if failure is not None] == []
    assert len(report.failures) >= 152, "the suite has fewer tests than it had"
    for promise, _ in MISTAKES.values():
        assert [name for name in report.failures if name.startswith(f"TestMyStore.{promise}")]


def test_two_stores_are_tested_in_one_project_on_the_session_s_event_loop(tmp_path: Path) -> None:
    promises = ["test_threads_are_found_as_in_the_model", "test_a_deleted_thread_may_be_made_anew"]
    which = [f"{name}::{promise}" for name in ("TestMyStore", "TestAnother") for promise in promises]
    report = run_pytest(tmp_path, RIGHT + ANOTHER, *which, loop="session")
    assert report.failures == {name.replace("::", "."): None for name in which}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Each mistaken store under the promise that it breaks, all in one run."""
    code = RIGHT.partition("\n\n\nclass")[0]
    which = []
    for number, (promise, method) in enumerate(MISTAKES.values()):
        code += f"\n\n\nclass Store{number}(InMemoryMetadataStore):{method}\n\n"
        code += f"class TestStore{number}(MetadataStoreContract):\n    @pytest_asyncio.fixture\n"
        code += f"    async def store(self):\n        yield Store{number}()\n"
        which.append(f"TestStore{number}::{promise}")
    return run_pytest(tmp_path_factory.mktemp("mistaken"), code, *which)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_store_with_a_mistake_fails(mistaken: Report, mistake: str) -> None:
    number = list(MISTAKES).index(mistake)
    found = [failure for name, failure in mistaken.failures.items() if name.startswith(f"TestStore{number}.")]
    shown = [failure for failure in found if failure is not None]
    assert shown, "it passes"
    assert all("assert " in failure or "DID NOT RAISE" in failure for failure in shown), "it fails in another way"


def test_a_failed_assertion_shows_its_values(mistaken: Report) -> None:
    number = list(MISTAKES).index("rows are shared")
    (failure,) = (failure for name, failure in mistaken.failures.items() if name.startswith(f"TestStore{number}."))
    assert failure is not None
    assert "'spoilt': True" in failure


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    code = RIGHT.replace("yield InMemoryMetadataStore()", "yield object()")
    report = run_pytest(tmp_path, code, "TestMyStore::test_a_thread_is_made_once")
    (failure,) = report.failures.values()
    assert failure is not None
    assert "The fixture 'store' gave object, which is no metadata store (it has no start_run, attach_thread," in failure
    assert failure.endswith('yield the open store itself."')


def test_a_fixture_that_is_not_awaited_is_named(tmp_path: Path) -> None:
    code = RIGHT.replace("pytest_asyncio", "pytest")
    report = run_pytest(tmp_path, code, "TestMyStore::test_a_thread_is_made_once", mode="strict")
    assert "requested an async fixture 'store'" in report.printed
    assert [failure for failure in report.failures.values() if failure is None] == []
