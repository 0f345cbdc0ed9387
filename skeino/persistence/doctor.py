"""`examine()`: the settings, checked against the living database. Nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from skeino.errors import SkeinoError
from skeino.persistence.checks import Check, of_strictness, of_versions, unreachable
from skeino.persistence.opening import URI_IN_VAIN, open_checkpointer, refuse_split_brain, spec_of
from skeino.persistence.registry import doctor_of
from skeino.settings import SkeinoSettings

_OF_SCHEMES: Final = {
    "memory": "Nothing is kept beyond the process, so there is no database.",
    "redis": "Threads and runs are in memory beside it, and are lost at a restart.",
}
_NO_SCHEME: Final = "No scheme is set in the environment; one in the application's Python code is not seen here."


async def examine(settings: SkeinoSettings, workers: int = 1) -> AsyncIterator[Check]:
    """One check after the other; what cannot be looked at is skipped, with the reason.

    Args:
        settings: as an application has them.
        workers: its processes, on all machines, for the number of connections.

    Raises:
        ConfigurationError: the settings cannot work, whatever the database.
    """
    yield of_versions()
    yield of_strictness()
    spec = spec_of(settings)
    refuse_split_brain(settings)
    examine_backend = doctor_of(spec.scheme)
    if examine_backend is not None:
        async for check in examine_backend(spec, workers, settings.lease_seconds):
            yield check
        return
    sentence = _OF_SCHEMES.get(spec.scheme, "The scheme is not one of skeino's own: there are no more checks for it.")
    if spec.scheme == "memory":
        async with open_checkpointer(settings):
            yield Check("reachable", "skipped", sentence)
        if "checkpointer_scheme" not in settings.model_fields_set:
            found = URI_IN_VAIN if settings.checkpointer_uri else _NO_SCHEME
            yield Check("scheme", "warning", found, "Set SKEINO_CHECKPOINTER_SCHEME as the application has it.")
        return
    try:
        async with open_checkpointer(settings):
            yield Check("reachable", "ok", "The checkpointer opens.")
    except SkeinoError as exc:
        for check in unreachable(exc, ()):
            yield check
        return
    if spec.scheme == "redis":
        advice = "Choose a scheme with a metadata store, if runs must outlive the process."
        yield Check("runs", "warning", sentence, advice)
    else:
        yield Check("runs", "skipped", sentence)
