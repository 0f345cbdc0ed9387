"""The schema of the settings' database, whichever it is: looked at, brought up to date, shown as a script."""

from __future__ import annotations

from typing import Any, Final

from skeino.errors import ConfigurationError
from skeino.persistence.opening import open_persistence
from skeino.persistence.registry import CheckpointerSpec, normalised_scheme, schema_of
from skeino.persistence.versions import SchemaState
from skeino.settings import SkeinoSettings

_A_DAY: Final = 24 * 3600.0


async def read_schema(settings: SkeinoSettings) -> SchemaState:
    """What the database has of the schema; nothing is made.

    Raises:
        ConfigurationError: the settings cannot work, or their scheme has no schema.
        StoreUnavailableError: the database cannot be reached.
    """
    spec = _spec_of(settings)
    state: SchemaState = await schema_of(spec.scheme).read_schema(spec)
    return state


async def apply_schema(settings: SkeinoSettings) -> SchemaState:
    """Make what is missing, as a start of the application would, but for its time limits.

    Raises:
        ConfigurationError, StoreUnavailableError: as `read_schema`.
        SchemaError: the schema is newer than this code, or may not be made.
    """
    spec = _spec_of(settings)
    patient: dict[str, Any] = {**spec.options, "setup_schema": True, "operation_timeout": _A_DAY}
    async with open_persistence(settings.model_copy(update={"checkpointer_options": patient})):
        return await read_schema(settings)


def schema_script(settings: SkeinoSettings) -> str:
    """What makes the schema: SQL for psql or sqlite3, or commands for mongosh. No database is asked.

    Raises:
        ConfigurationError: the settings cannot work, or their scheme has no schema.
    """
    spec = _spec_of(settings)
    script: str = schema_of(spec.scheme).schema_script(spec)
    return script


def _spec_of(settings: SkeinoSettings) -> CheckpointerSpec:
    scheme = normalised_scheme(settings.checkpointer_scheme)
    if settings.checkpointer_options.get("client") is not None:
        raise ConfigurationError("The schema is set up by a URI: leave the option client out.")
    return CheckpointerSpec(scheme, settings.checkpointer_uri, dict(settings.checkpointer_options))
