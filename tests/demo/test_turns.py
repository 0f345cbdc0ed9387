"""Turns over HTTP: what streams, how their runs end, and which checkpoints each of them wrote."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.demo.process import SECONDS, Demo, events_of, eventually, text_of
from tests.http_client import httpx


def test_an_answer_arrives_in_pieces(demo: Demo) -> None:
    arrivals = []
    with httpx.stream("POST", f"{demo.url}/chat", json={"message": "Hello"}, timeout=SECONDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        arrivals = [time.monotonic() for line in response.iter_lines() if line == "event: token"]
    assert len(arrivals) > 20
    assert arrivals[-1] - arrivals[0] > 0.5  # each word takes 0.03 s


def test_a_message_without_a_thread_begins_one(demo: Demo) -> None:
    response = demo.post({"message": "  A new\nthread  "})
    ids = dict(events_of(response.text))["run"]
    assert ids == {"run_id": response.headers["x-run-id"], "thread_id": response.headers["x-thread-id"]}
    thread = next(row for row in demo.get("/threads") if row["thread_id"] == ids["thread_id"])
    assert thread["title"] == "A new thread"


def test_a_thread_remembers_and_keeps_its_title(demo: Demo) -> None:
    demo.turn(thread_id="memory", message="My name is Ada.")
    answer = text_of(demo.turn(thread_id="memory", message="Who am I?"))
    assert "message number 2" in answer
    assert "“My name is Ada”" in answer
    thread = demo.get("/threads/memory")
    assert thread["title"] == "My name is Ada."
    assert [message["role"] for message in thread["messages"]] == ["user", "assistant"] * 2
    assert thread["messages"][3]["text"] == answer


def test_every_checkpoint_names_the_run_that_wrote_it(demo: Demo) -> None:
    first = dict(demo.turn(thread_id="grouped", message="One"))["run"]["run_id"]
    second = dict(demo.turn(thread_id="grouped", message="Two"))["run"]["run_id"]
    runs = demo.settled_runs("grouped", 2)
    history = demo.get("/threads/grouped/history")
    assert [run["run_id"] for run in runs] == [second, first]
    assert [one["run_id"] for one in history] == [second] * 4 + [first] * 4
    assert [one["step"] for one in history] == [6, 5, 4, 3, 2, 1, 0, -1]
    for run, written in zip(runs, (history[:4], history[4:]), strict=True):
        assert run["status"] == "success"
        assert run["duration"] > 0
        assert run["checkpoint_count"] == 4
        assert run["last_checkpoint_id"] == written[0]["checkpoint_id"]
        assert run["first_checkpoint_id"] == written[-1]["checkpoint_id"]
    messages = demo.get("/threads/grouped")["messages"]
    assert [message["run_id"] for message in messages] == [first, first, second, second]


def test_a_failing_turn_is_an_event_and_an_error(demo: Demo) -> None:
    events = demo.turn(thread_id="failing", message="Please fail this turn.")
    assert events[-1][0] == "error"
    assert "was asked to fail" in events[-1][1]["message"]
    (run,) = demo.settled_runs("failing", 1)
    assert run["status"] == "error"
    assert run["error"]["type"].endswith("IntendedError")
    assert run["checkpoint_count"] == 3
    assert demo.get("/threads/failing")["status"] == "error"
    assert "A turn failed, as it was asked to" in demo.errors
    assert "Traceback" not in demo.errors
    demo.turn(thread_id="failing", message="Hello again")
    assert demo.settled_runs("failing", 2)[0]["status"] == "success"
    assert demo.get("/threads/failing")["status"] == "idle"


@pytest.mark.parametrize(("resume", "said"), [("approve", "went ahead"), ("decline", "stays undone")])
def test_a_paused_turn_is_resumed_by_a_new_run(demo: Demo, resume: str, said: str) -> None:
    thread_id = f"paused-{resume}"
    events = demo.turn(thread_id=thread_id, message="Publish it, but ask me first.")
    question = "May I go ahead with “Publish it, but ask me first”?"
    assert [name for name, _ in events] == ["run", "waiting", "end"]
    assert events[1][1] == {"question": question}
    (paused,) = demo.settled_runs(thread_id, 1)
    assert (paused["status"], paused["paused"]) == ("success", True)
    thread = demo.get(f"/threads/{thread_id}")
    assert (thread["status"], thread["question"]) == ("interrupted", question)

    refused = demo.post({"thread_id": thread_id, "message": "Something else"})
    assert (refused.status_code, "waits for a decision" in refused.text) == (409, True)

    assert said in text_of(demo.turn(thread_id=thread_id, resume=resume))
    resumed = demo.settled_runs(thread_id, 3)[0]
    assert (resumed["status"], resumed["paused"]) == ("success", False)
    assert resumed["run_id"] != paused["run_id"]
    history = demo.get(f"/threads/{thread_id}/history")
    assert [one["run_id"] for one in history] == [resumed["run_id"]] * 2 + [paused["run_id"]] * 3
    thread = demo.get(f"/threads/{thread_id}")
    assert (thread["status"], thread["question"]) == ("idle", None)

    again = demo.post({"thread_id": thread_id, "resume": resume})
    assert (again.status_code, "does not wait" in again.text) == (409, True)


def test_a_client_that_leaves_interrupts_its_run(demo: Demo) -> None:
    body = {"thread_id": "left", "message": "Hello"}
    with httpx.stream("POST", f"{demo.url}/chat", json=body, timeout=SECONDS) as response:
        assert next(line for line in response.iter_lines() if line == "event: token")
    (run,) = demo.settled_runs("left", 1)
    assert (run["status"], run["error"]["code"]) == ("interrupted", "client_disconnected")
    assert "Hello" in text_of(demo.turn(thread_id="left", message="Are you there?"))


def test_a_thread_is_deleted_with_its_runs_and_checkpoints(demo: Demo) -> None:
    demo.turn(thread_id="a/b ü", message="Hello")
    path = "/threads/a%2Fb%20%C3%BC"
    assert len(demo.settled_runs("a%2Fb%20%C3%BC", 1)) == 1
    assert httpx.delete(f"{demo.url}{path}", timeout=SECONDS).status_code == 204
    for gone in (path, f"{path}/runs", f"{path}/history"):
        assert httpx.get(f"{demo.url}{gone}", timeout=SECONDS).status_code == 404
    assert httpx.delete(f"{demo.url}{path}", timeout=SECONDS).status_code == 404
    assert text_of(demo.turn(thread_id="a/b ü", message="Hello")).startswith("You wrote “Hello”. I am")


def test_a_thread_in_use_is_not_deleted(demo: Demo) -> None:
    body = {"thread_id": "in-use", "message": "Hello"}
    with httpx.stream("POST", f"{demo.url}/chat", json=body, timeout=SECONDS) as response:
        lines = response.iter_lines()  # kept: the connection closes with it
        assert next(line for line in lines if line == "event: token")
        refused = httpx.delete(f"{demo.url}/threads/in-use", timeout=SECONDS)
    assert (refused.status_code, "has an active run" in refused.text) == (409, True)


def test_the_page_reads_without_leaving_runs(demo: Demo) -> None:
    demo.turn(thread_id="read", message="Hello")
    before = demo.settled_runs("read", 1)
    for path in ("/threads", "/threads/read", "/threads/read/runs", "/threads/read/history"):
        response = httpx.get(f"{demo.url}{path}", timeout=SECONDS)
        assert "x-run-id" not in response.headers
    assert demo.get("/threads/read/runs") == before


def test_the_page_needs_nothing_from_elsewhere(demo: Demo) -> None:
    for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/app.js", "text/javascript")):
        response = httpx.get(f"{demo.url}{path}", timeout=SECONDS)
        assert response.headers["content-type"].startswith(kind)
        assert "https://" not in response.text
        assert "innerHTML" not in response.text


BAD_INPUT: list[tuple[Any, int, str]] = [
    ([], 422, "JSON object"),
    ({}, 422, "either"),
    ({"thread_id": "bad"}, 422, "either"),
    ({"thread_id": "bad", "message": "a", "resume": "approve"}, 422, "either"),
    ({"thread_id": "bad", "message": ""}, 422, "not empty"),
    ({"thread_id": "bad", "message": 7}, 422, "text"),
    ({"thread_id": "bad", "message": "a" * 4001}, 422, "4000"),
    ({"thread_id": "bad", "message": "a\0b"}, 422, "NUL"),
    ({"thread_id": "bad", "resume": "perhaps"}, 422, "'approve' or 'decline'"),
    ({"resume": "approve"}, 422, "thread_id"),
    ({"thread_id": "bad", "resume": "approve"}, 404, "no such thread"),
    ({"thread_id": "", "message": "a"}, 400, "thread_id is empty"),
    ({"thread_id": 7, "message": "a"}, 400, "thread_id must be a string"),
    ({"thread_id": "a\nb", "message": "a"}, 400, "not printable"),
    ({"thread_id": "b" * 256, "message": "a"}, 400, "256 characters"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence_and_nothing_is_written(
    demo: Demo, body: Any, status: int, sentence: str
) -> None:
    before = {row["thread_id"] for row in demo.get("/threads")}
    response = demo.post(body)
    assert response.status_code == status
    assert set(response.json()) == {"detail"}
    assert sentence in response.json()["detail"]
    assert {row["thread_id"] for row in demo.get("/threads")} == before


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b'{"thread_id": "bad", "message": "\\ud800"}', "application/json", 422),
        (b'{"thread_id": "bad", "message": "a"}', "text/plain", 415),
    ],
)
def test_a_body_that_is_no_json_is_refused(demo: Demo, content: bytes, kind: str, status: int) -> None:
    response = httpx.post(f"{demo.url}/chat", content=content, headers={"Content-Type": kind}, timeout=SECONDS)
    assert response.status_code == status
    assert response.json()["detail"].endswith(".")
    assert httpx.get(f"{demo.url}/threads/bad", timeout=SECONDS).status_code == 404


def test_two_threads_at_once_do_not_mix(demo: Demo) -> None:
    with (
        httpx.stream(
            "POST", f"{demo.url}/chat", json={"thread_id": "left-hand", "message": "L"}, timeout=SECONDS
        ) as left,
        httpx.stream(
            "POST", f"{demo.url}/chat", json={"thread_id": "right-hand", "message": "R"}, timeout=SECONDS
        ) as right,
    ):
        answers = [text_of(events_of(stream.read().decode())) for stream in (left, right)]
    assert ["“L”" in answers[0], "“R”" in answers[0]] == [True, False]
    assert ["“R”" in answers[1], "“L”" in answers[1]] == [True, False]
    eventually(lambda: all(demo.get(f"/threads/{one}")["status"] == "idle" for one in ("left-hand", "right-hand")))
