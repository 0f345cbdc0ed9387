"""`SkeinoSettings`: one choice, from arguments or the environment, and never a secret in a message."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from pydantic import ValidationError

from skeino import ConfigurationError, SkeinoSettings

SECRET = "hunter2-canary"
URI = f"postgresql://user:{SECRET}@db.example:5432/app"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for variable in list(os.environ):
        if variable.upper().startswith("SKEINO_"):
            monkeypatch.delenv(variable)


def test_the_default_is_memory() -> None:
    settings = SkeinoSettings()
    assert settings.checkpointer_scheme == "memory"
    assert settings.checkpointer_uri is None
    assert settings.checkpointer_options == {}
    assert settings.allow_ephemeral_metadata is False
    assert settings.on_store_error == "reject"


def test_the_environment_fills_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEINO_CHECKPOINTER_SCHEME", "Postgres")
    monkeypatch.setenv("skeino_checkpointer_uri", URI)
    monkeypatch.setenv("SKEINO_CHECKPOINTER_OPTIONS", '{"setup_schema": false}')
    monkeypatch.setenv("SKEINO_ALLOW_EPHEMERAL_METADATA", "true")
    monkeypatch.setenv("SKEINO_ON_STORE_ERROR", "untracked")
    settings = SkeinoSettings()
    assert settings.checkpointer_scheme == "Postgres"
    assert settings.checkpointer_uri == URI
    assert settings.checkpointer_options == {"setup_schema": False}
    assert settings.allow_ephemeral_metadata is True
    assert settings.on_store_error == "untracked"
    assert SkeinoSettings(checkpointer_scheme="memory").checkpointer_scheme == "memory"


def test_it_is_frozen() -> None:
    settings = SkeinoSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.checkpointer_scheme = "sqlite"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("checkpoint_uri", r"did you mean checkpointer_uri\?$"),
        ("scheme", r"did you mean checkpointer_scheme\?$"),
        ("uri", r"did you mean checkpointer_uri\?$"),
        ("database", r"known are checkpointer_scheme, .*sweep_interval_minutes\.$"),
    ],
)
def test_an_unknown_field_is_refused_with_what_may_be_meant(name: str, hint: str) -> None:
    wrong: dict[str, Any] = {name: URI}
    with pytest.raises(ConfigurationError, match=f"{name} is not one of its fields, {hint}") as caught:
        SkeinoSettings(**wrong)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"checkpointer_uri": [URI]},
        {"checkpointer_scheme": "", "checkpointer_uri": URI},
        {"checkpointer_options": URI},
        {"allow_ephemeral_metadata": URI},
        {"on_store_error": URI},
    ],
)
def test_a_wrong_value_is_refused_without_repeating_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SkeinoSettings(**wrong)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, ValueError)


def test_a_variable_that_is_no_json_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEINO_CHECKPOINTER_OPTIONS", URI)
    with pytest.raises(ConfigurationError, match="checkpointer_options") as caught:
        SkeinoSettings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_password_is_in_no_repr() -> None:
    settings = SkeinoSettings(checkpointer_uri=URI, checkpointer_options={"password": SECRET})
    assert SECRET not in f"{settings!r} {settings!s}"


@pytest.mark.parametrize("variable", ["SKEINO_CHECKPOINTER_SCHEMA", "SKEINO_CHECKPOINT_URI", "skeino_checkpointer_url"])
def test_a_misspelt_variable_is_refused_with_the_right_one(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "postgres")
    with pytest.raises(ConfigurationError, match=r"did you mean SKEINO_CHECKPOINTER_(SCHEME|URI)"):
        SkeinoSettings()


@pytest.mark.parametrize("variable", ["SKEINO_SCHEME", "SKEINO_URI", "SKEINO_BACKEND", "SKEINO_DATABASE_URL"])
def test_any_other_variable_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "postgres")
    with pytest.raises(ConfigurationError, match=f"The environment variable {variable} is not one of skeino's"):
        SkeinoSettings()


def test_a_variable_that_is_like_none_of_ours_is_likened_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEINO_BLA", "1")
    with pytest.raises(ConfigurationError, match=r"SKEINO_BLA is not one of skeino's: known are SKEINO_CHECKPOINTER_S"):
        SkeinoSettings()


def test_what_a_cluster_sets_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEINO_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SKEINO_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SKEINO_API_SERVICE_PORT_HTTP", "8000")
    monkeypatch.setenv("SKEINO_PORT", "tcp://10.0.0.1:8000")
    assert SkeinoSettings().checkpointer_scheme == "memory"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, None),
        ({"thread_ttl_minutes": 60}, 300),
        ({"run_retention_days": 1}, 300),
        ({"sweep_interval_minutes": 2}, 120),
        ({"run_retention_days": 1, "sweep_interval_minutes": 1}, 60),
        ({"thread_ttl_minutes": 60, "sweep_interval_minutes": 0}, None),
    ],
)
def test_sweeping_is_off_unless_something_is_asked_for(given: dict[str, Any], seconds: float | None) -> None:
    assert SkeinoSettings(**given).sweep_interval == seconds


@pytest.mark.parametrize("name", ["thread_ttl_minutes", "run_retention_days", "sweep_interval_minutes"])
@pytest.mark.parametrize("value", [-1, "nan", "inf", "soon"])
def test_a_time_that_cannot_be_meant_is_refused(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        SkeinoSettings(**given)


def test_the_ttl_of_new_threads_is_langgraphs() -> None:
    assert SkeinoSettings().thread_ttl is None
    settings = SkeinoSettings(thread_ttl_minutes=5, thread_ttl_strategy="keep_latest")
    assert settings.thread_ttl == {"strategy": "keep_latest", "ttl": 5.0}
