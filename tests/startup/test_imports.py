"""What importing costs, what it must not load, and which way imports run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = {"psycopg", "psycopg_pool", "aiosqlite", "sqlite3", "pymongo", "bson", "motor", "redis"}
WEB = {"starlette", "fastapi", "uvicorn", "skeino_asgi"}


def _python(code: str, *search: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(one) for one in (*search, ROOT))}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_importing_loads_no_driver_and_no_graph() -> None:
    code = "import sys, skeino_asgi; print(*sys.modules)"
    loaded = set(_python(code).stdout.split())
    assert "skeino_asgi.middleware" in loaded
    assert not {name.partition(".")[0] for name in loaded} & DRIVERS
    assert not [name for name in loaded if name.startswith(("langgraph.graph", "langgraph.pregel"))]


def test_the_command_line_loads_no_driver_before_it_is_told_a_scheme() -> None:
    loaded = {name.partition(".")[0] for name in _python("import sys, skeino.cli; print(*sys.modules)").stdout.split()}
    assert "typer" in loaded
    assert not loaded & (DRIVERS | WEB)


def test_importing_skeino_loads_no_web_framework() -> None:
    loaded = {name.partition(".")[0] for name in _python("import sys, skeino; print(*sys.modules)").stdout.split()}
    assert "skeino" in loaded
    assert not loaded & WEB


def test_opening_a_scheme_loads_its_driver_alone() -> None:
    code = """
import asyncio, sys
from skeino import SkeinoSettings
from skeino.persistence import open_persistence
async def main():
    async with open_persistence(SkeinoSettings(checkpointer_scheme="memory")):
        print(*sys.modules)
asyncio.run(main())
"""
    assert not {name.partition(".")[0] for name in _python(code).stdout.split()} & DRIVERS


def test_importing_loads_little_more_than_what_it_stands_on() -> None:
    base = "langgraph.checkpoint.base, starlette, pydantic_settings"
    code = f"import sys, {base}; before = {{*sys.modules}}; import skeino_asgi; print(*{{*sys.modules}} - before)"
    more = set(_python(code).stdout.split())
    assert "skeino_asgi.middleware" in more
    others = {name for name in more if name.partition(".")[0] not in ("skeino", "skeino_asgi")}
    assert len(others) < 50, sorted(others)


@pytest.mark.parametrize("package", ["pytest", "pytest-asyncio", "hypothesis"])
def test_without_its_tools_skeino_testing_names_the_extra(package: str) -> None:
    result = _python(f"import sys; sys.modules[{package.replace('-', '_')!r}] = None; import skeino.testing")
    assert result.stderr.strip().splitlines()[-1] == (
        f"skeino.errors.MissingDriverError: skeino.testing needs the package {package!r}: "
        "run pip install 'skeino-asgi[testing]'."
    )


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found.add(node.module or "")
    return found


def _files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("file", _files("skeino"), ids=str)
def test_skeino_knows_no_http(file: Path) -> None:
    assert not {name.partition(".")[0] for name in _imports(file)} & WEB


@pytest.mark.parametrize("file", _files("skeino") + _files("skeino_asgi"), ids=str)
def test_only_skeino_testing_knows_the_tools_of_tests(file: Path) -> None:
    if "testing" not in file.parts:
        assert not [name for name in _imports(file) if name.startswith(("pytest", "hypothesis", "skeino.testing"))]


@pytest.mark.parametrize("file", _files("skeino") + _files("skeino_asgi"), ids=str)
def test_a_driver_is_imported_in_its_own_backend_only(file: Path) -> None:
    allowed = {
        "sqlite": {"sqlite3", "aiosqlite"},
        "postgres": {"psycopg", "psycopg_pool"},
        "mongodb": {"pymongo", "bson"},
        "redis": {"redis", "redisvl"},
    }.get(file.parent.name, set())
    assert {name.partition(".")[0] for name in _imports(file)} & DRIVERS <= allowed


@pytest.mark.parametrize("file", _files("skeino"), ids=str)
def test_imports_run_one_way(file: Path) -> None:
    imported = {name for name in _imports(file) if name.startswith("skeino")}
    in_persistence = "persistence" in file.parts
    above = {"copying", "cli", "testing"} & {*file.parts} or file.name == "__main__.py"
    if in_persistence:
        assert not [name for name in imported if name.startswith(("skeino.copying", "skeino.cli"))]
    elif not above:
        top_level = {name for name in imported if name.startswith("skeino.persistence")}
        assert top_level <= {"skeino.persistence.rows"}  # types, for annotations alone
    backends = {"sqlite", "postgres", "mongodb", "redis"}
    if file.parent.name in backends:
        others = tuple(f"skeino.persistence.{name}" for name in backends - {file.parent.name})
        assert not [name for name in imported if name.startswith(others)]
    elif file.name != "__init__.py":
        named = tuple(f"skeino.persistence.{name}" for name in backends)
        assert not [name for name in imported if name.startswith(named)]


def _distribution(folder: Path, name: str) -> Path:
    info = folder / f"{name}-4.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 4.0.0\n")
    return folder


@pytest.mark.parametrize("module", ["skeino", "skeino_asgi"])
def test_beside_the_other_project_of_that_name_importing_fails_clearly(tmp_path: Path, module: str) -> None:
    result = _python(f"import {module}", _distribution(tmp_path, "skeino"))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: The distribution 'skeino' is another project")
    assert "install 'skeino-asgi' again" in last


def test_installed_over_ours_the_other_project_is_refused_all_the_same(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "skeino", tmp_path / "skeino")  # its files stand between ours
    (tmp_path / "skeino" / "__init__.py").write_text("class SkeinoSettings: ...\n")
    result = _python("import skeino_asgi", _distribution(tmp_path, "skeino"))
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: The distribution 'skeino' is another project")


def test_over_written_by_the_other_project_importing_fails_clearly(tmp_path: Path) -> None:
    (tmp_path / "skeino").mkdir()
    (tmp_path / "skeino" / "__init__.py").write_text("__version__ = '4.0.0'\n")
    result = _python("import skeino_asgi", tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: The package 'skeino' on this Python is another project's")


def test_another_distribution_with_a_similar_name_does_not_matter(tmp_path: Path) -> None:
    assert _python("import skeino_asgi", _distribution(tmp_path, "skeino-tools")).returncode == 0


def test_both_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "skeino" / "py.typed").exists()
    assert (ROOT / "skeino_asgi" / "py.typed").exists()
    assert sysconfig.get_python_version() >= "3.11"
