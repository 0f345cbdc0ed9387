"""What ties a run to the rest of a system: the request's own id, and the trace it is part of."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from skeino.errors import ConfigurationError
from skeino.runs import Run

CONVERSATION: Final = "gen_ai.conversation.id"
"""OpenTelemetry's attribute for a thread:
https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/"""

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def header_name(name: str) -> bytes:
    """A header's name as a scope has it.

    Raises:
        ConfigurationError: it is no name of a header (RFC 9110, section 5.1).
    """
    if not _TOKEN.fullmatch(name):
        raise ConfigurationError(f"request_id_header must be a header's name, 'X-Request-ID' say, not {name!r}.")
    return name.lower().encode()


def valid_request_id(value: bytes | None) -> str | None:
    """The id, if it is well-formed: up to 128 letters, digits and `._:/+=@~-`. All else is ignored."""
    text = (value or b"").decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else None


def valid_traceparent(value: bytes | None) -> str | None:
    """The trace context, if it is well-formed; the parts that a later version may add are left out.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    text = (value or b"").decode("latin-1")
    found = _TRACEPARENT.match(text)
    if found is None:
        return None
    rest = text[found.end() :]
    return found[0] if rest == "" or (rest.startswith("-") and not text.startswith("00-")) else None


def current_span() -> Any:
    """OpenTelemetry's current span; None where the application does not use it, or there is none."""
    context = sys.modules.get("opentelemetry.context")  # whoever makes spans has imported it
    if context is None or not context.get_current():
        return None
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span()
    return None if span is trace.INVALID_SPAN or not span.get_span_context().is_valid else span


def traceparent_of(span: Any) -> str:
    """The trace context whose parent is this span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"


def describe_span(span: Any, run: Run) -> None:
    """Say on the span which run it is and, once that is known, which thread; unless it has ended by now."""
    if not span.is_recording():
        return
    span.set_attribute("skeino.run.id", run.run_id)
    if run.thread_id is not None:
        span.set_attribute(CONVERSATION, run.thread_id)


def correlation_of(run: Run) -> dict[str, str]:
    """What stands in the metadata of the run's row, to be searched for."""
    found = {}
    if run.request_id is not None:
        found["request_id"] = run.request_id
    if (trace_id := run.trace_id) is not None:
        found["trace_id"] = trace_id
    return found
