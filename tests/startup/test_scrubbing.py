"""No secrets in rows and logs: the scrubber, the log filter, and what a run's error keeps."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skeino import SkeinoSettings
from skeino.scrubbing import MAX_CHARACTERS, scrubbed
from skeino_asgi import RunLogFilter, RunTracker

CANARY = "c4n4ry-s3cr3t-v4lu3"


@pytest.mark.parametrize(
    "text",
    [
        f"connect to postgresql://user:{CANARY}@host/db failed",
        f"amqp+ssl://{CANARY}@host",
        f"password={CANARY}",
        f"PASSWORD = '{CANARY} with spaces'",
        f'{{"api_key": "{CANARY}"}}',
        f"{{'client-secret': '{CANARY}'}}",
        f"OPENAI_API_KEY={CANARY};",
        f"Authorization: Bearer {CANARY}",
        f"authorization='{CANARY}'",
        f"bearer {CANARY}",
        f"access_token: {CANARY}, and more",
        f"?token={CANARY}&x=1",
        f"Incorrect API key provided: sk-proj-{CANARY}",
        f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.sig",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert CANARY not in scrubbed(text)
    assert "[hidden]" in scrubbed(text)


@pytest.mark.parametrize(
    "text", ["the token count is 17", "user bob not found", "a password is required", "see https://example.org/a@b"]
)
def test_what_does_not_is_kept(text: str) -> None:
    assert scrubbed(text) == text


@given(st.text(alphabet=st.characters(), max_size=3000))
def test_the_result_is_one_bounded_printable_line_that_every_store_takes(text: str) -> None:
    result = scrubbed(text)
    assert len(result) <= MAX_CHARACTERS
    assert len(result.splitlines()) <= 1
    assert "\x00" not in result
    result.encode()


@pytest.mark.parametrize("text", ["password=" * 2000, "a" * 10**6, "://" * 3000 + "@", "eyJ" * 3000, "token" * 3000])
def test_it_takes_no_long_time_whatever_the_text(text: str) -> None:
    import time

    started = time.perf_counter()
    scrubbed(text)
    assert time.perf_counter() - started < 0.5


async def test_log_records_carry_the_runs_and_the_threads_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(RunLogFilter())
    logger = logging.getLogger("an.application")
    tracker = RunTracker(SkeinoSettings())
    try:
        logger.warning("outside")
        async with tracker.lifespan(), tracker.run(thread_id="t1") as run:
            logger.warning("inside")
    finally:
        caplog.handler.filters.clear()
    outside, inside = (record for record in caplog.records if record.name == "an.application")
    assert (outside.__dict__["run_id"], outside.__dict__["thread_id"]) == ("-", "-")
    assert (inside.__dict__["run_id"], inside.__dict__["thread_id"]) == (run.run_id, "t1")
