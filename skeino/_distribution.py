"""Refuses to be imported beside PyPI's `skeino`, another project that installs into the same folder."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution


def _other_project_is_installed() -> bool:
    try:  # the look-up also finds an unpacked "skeino-something", so the name is compared
        return distribution("skeino").metadata["Name"] == "skeino"
    except PackageNotFoundError:
        return False


if _other_project_is_installed():
    raise ImportError(
        "The distribution 'skeino' is another project that installs into the same folder as 'skeino-asgi', so one "
        "has overwritten files of the other: run 'pip uninstall skeino skeino-asgi', then install 'skeino-asgi' again."
    )
