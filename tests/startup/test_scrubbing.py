"""No secrets in rows and logs: the scrubber, the log filter, and what a run's error keeps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skeino import SkeinoSettings
from skeino.scrubbing import MAX_CHARACTERS, scrubbed
from skeino_asgi import RunLogFilter, RunTracker

CANARY = "c4n4ry-s3cr3t-v4lu3"
TRICKS = [
    *("a://" * 3000, "a://b:" * 2000, "authorization: " * 800, "authorization=a,b=" * 600, "cookie: a;" * 1000),
    *(
        "password:\\" * 1500,
        "key='" * 1500,
        'key="' + "\\" * 1990,
        'key="' + "\\" * 1990 + "x",
        'key="\\' * 1500,
        'key=\\"' * 1500,
        "-----BEGIN KEY-----" * 400,
    ),
    *("secret-" * 1000, "api key provided" * 500, "A" * 40 + "://" + ":" * 3000),
]


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
        f"postgresql://user:pass/{CANARY}@host/db",
        f"postgresql://user:a@{CANARY}@host/db",
        f"https://{CANARY}:x@host:8080/path@x",
        f"Authorization: Token {CANARY}",
        f"'authorization': 'ApiKey {CANARY}'",
        f'Proxy-Authorization: Digest username="a", response="{CANARY}"',
        f"Cookie: theme=dark; session={CANARY}; lang=en",
        f"set-cookie: sid={CANARY}; HttpOnly",
        f"x-api-key: {CANARY}",
        f"Incorrect API key provided: {CANARY}. See https://example.com",
        f"pwd={CANARY};uid=app",
        f"AccountKey={CANARY}==;EndpointSuffix=example.net",
        f"GET /c?sv=2022&sig={CANARY} failed",
        f"password=a,b{CANARY}",
        f'{{\\"api_key\\": \\"{CANARY}\\"}}',
        f'{{\\\\\\"api_key\\\\\\": \\\\\\"{CANARY}\\\\\\"}}',
        f'{{"secret": "a\\"{CANARY}"}}',
        repr(f'{{"secret": "a\\"{CANARY}"}}'),
        f"{{'token': b'{CANARY}'}}",
        f'password="not closed {CANARY}',
        f"next=%2F%3Fpassword%3D{CANARY}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}",
        f"github_pat_{CANARY.replace('-', '_')}",
        f"AIza{CANARY}-{CANARY}",
        f"pass\u200bword={CANARY}",
        f"password=\x00{CANARY}",
        f"\x1b[31mtoken={CANARY}\x1b[0m",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert all(part not in scrubbed(text) for part in (CANARY, CANARY.replace("-", "_")))
    assert "[hidden]" in scrubbed(text)


@pytest.mark.parametrize("length", [0, *range(440, 520), *range(1940, 2020), 5000])
@pytest.mark.parametrize("filler", ["x", "word ", "/", "é,"])
def test_no_bound_leaves_half_a_secret(filler: str, length: int) -> None:
    secret = "hunter2" * 6
    before = (filler * length)[:length]
    for text in (f"postgresql://app:{secret}@db", f"password='{secret} {secret}'", f"https://app:a/{secret}@db"):
        for between in ("", " "):
            assert "hunter2" not in scrubbed(f"{before}{between}{text}")
            assert "hunter2" not in scrubbed(f"{before}{between}{text}{'y' * 3000}")


@pytest.mark.parametrize(
    "text",
    [
        "the token count is 17",
        "user bob not found",
        "a password is required",
        "see https://example.org/a@b",
        "see https://example.org:8080/a@b",
        "no such session: the thread is gone",
        "the keyboard: it passes",
        "bypass: 1",
    ],
)
def test_what_does_not_is_kept(text: str) -> None:
    assert scrubbed(text) == text


@given(st.text(alphabet=st.characters(), max_size=3000))
def test_the_result_is_one_bounded_printable_line_that_every_store_takes(text: str) -> None:
    result = scrubbed(text)
    assert len(result) <= MAX_CHARACTERS
    assert len(result.splitlines()) <= 1
    assert not any(one in result for one in "\x00\x1b\x9b\u202e\u2066\ufeff")
    result.encode()


@pytest.mark.parametrize(
    "text", ["password=" * 2000, "a" * 10**6, "://" * 3000 + "@", "eyJ" * 3000, "token" * 3000, *TRICKS]
)
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


@pytest.mark.parametrize(
    ("thread_id", "word"),
    [
        ("t1", "t1"),
        ("0199-雪:a/b", "0199-雪:a/b"),
        ("t1 CRITICAL admin logged in", "t1%20CRITICAL%20admin%20logged%20in"),
        ("t1\" level='x%20", "t1%22%20level=%27x%2520"),
    ],
)
async def test_a_thread_s_id_is_one_word_of_a_log_line(
    caplog: pytest.LogCaptureFixture, thread_id: str, word: str
) -> None:
    tracker = RunTracker(SkeinoSettings())
    record = logging.LogRecord("an.application", logging.INFO, "", 0, "handled", (), None)
    async with tracker.lifespan(), tracker.run(thread_id=thread_id):
        RunLogFilter().filter(record)
    assert record.__dict__["thread_id"] == word


async def test_what_is_said_of_metadata_that_cannot_be_kept_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    class Speaking(dict[str, object]):
        def items(self) -> Any:
            raise RuntimeError(CANARY)

    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        for metadata in ({f"password={CANARY}": object()}, Speaking(k=1), {"k": f"\x00{CANARY}"}):
            async with tracker.run() as run:
                run.metadata = metadata
            row = await tracker.metadata_store.get_run(run.run_id)
            assert row is not None
            assert row["metadata"] == {}
    assert caplog.text.count("is left out") == 3
    assert CANARY not in caplog.text
