"""Chat completions: every key of OpenAI's answers, whole or streamed, and what an end does to the engine."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager

import msgspec
import pytest

from appliance.api.openai.chat_schema import ChatRequest
from appliance.engine.json_schema import to_gbnf
from appliance.engine.protocol import Sampling
from tests.daemon_process import BASE, add_base, error_of, ok, wait_for

USER = {"role": "user", "content": "one two"}
ECHO = [f"{BASE}:", "one", "two"]


@pytest.fixture
def log(shared_daemon):
    """`log(what)`: lines that the engine has noted since the test began."""
    path = shared_daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    before = len(path.read_text()) if path.exists() else 0
    return lambda what: [
        line for line in path.read_text()[before:].splitlines() if line.startswith(what)
    ]


def stream(daemon, content: str, **body: object) -> list[str]:
    """The data of each event; fails for any line that is not one."""
    messages = [{"role": "user", "content": content}]
    body = {"model": BASE, "messages": messages, "stream": True, **body}
    with daemon.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    assert text.endswith("\n\n")
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def test_whole_answer_has_every_key(shared_daemon):
    answer = ok(shared_daemon.chat("one two"))
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", BASE)
    assert isinstance(answer["created"], int)
    assert {"system_fingerprint", "service_tier"} <= set(answer)
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "logprobs": None,
        "finish_reason": "stop",
        "message": {
            "role": "assistant",
            "content": "".join(ECHO),
            "refusal": None,
            "annotations": [],
        },
    }
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] == 2 + 3
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "completion_tokens_details" in usage


def test_streamed_answer_has_every_key_in_every_chunk(shared_daemon):
    *data, done = stream(shared_daemon, "one two")
    assert done == "[DONE]"
    chunks = [json.loads(each) for each in data]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    for chunk in chunks:
        assert set(chunk) == {
            "id",
            "created",
            "model",
            "choices",
            "usage",
            "object",
            "system_fingerprint",
            "service_tier",
        }
        assert (chunk["object"], chunk["usage"]) == ("chat.completion.chunk", None)
        (choice,) = chunk["choices"]
        assert set(choice) == {"delta", "finish_reason", "index", "logprobs"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1])
    assert text == "".join(ECHO)
    assert chunks[-1]["choices"][0]["delta"] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_usage_comes_last_and_only_when_asked_for(shared_daemon):
    *data, _done = stream(shared_daemon, "one two", stream_options={"include_usage": True})
    chunks = [json.loads(each) for each in data]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5
    assert {chunk["usage"] is None for chunk in chunks[:-1]} == {True}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answer_that_is_cut_says_so(shared_daemon, name):
    (choice,) = ok(shared_daemon.chat("one two three", **{name: 2}))["choices"]
    assert choice["finish_reason"] == "length"
    *data, _ = stream(shared_daemon, "one two three", **{name: 2})
    assert json.loads(data[-1])["choices"][0]["finish_reason"] == "length"


IGNORED = {
    "user": "u",
    "metadata": {"k": "v"},
    "store": False,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "reasoning_effort": "low",
    "prompt_cache_key": "k",
    "something_new": [1],
}
NEUTRAL = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "auto",
    "modalities": ["text"],
    "stop": [],
    "temperature": 1,
    "seed": -1,
    "presence_penalty": 0,
}


def test_what_changes_the_choice_reaches_the_engine():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "repeat_penalty": 1.5,
        "seed": 3,
        "stop": ["end"],
    }
    body = {"model": BASE, "messages": [USER], "logit_bias": {"12": -100}, **given}
    sampling = msgspec.json.decode(json.dumps(body), type=ChatRequest).sampling()
    assert sampling == Sampling(logit_bias={12: -100.0}, **given)


@pytest.mark.parametrize(
    ("bias", "named"),
    [
        ({"x": 1}, "logit_bias"),
        ({"1": 101}, "logit_bias"),
        ([1], "logit_bias"),
        ({"-1": 1}, "logit_bias"),
        ({str(1 << 64): 1}, "logit_bias"),
    ],
)
def test_bias_that_is_none_is_refused(shared_daemon, bias, named):
    ok(shared_daemon.chat("one", logit_bias={"1": 100}))
    error = error_of(shared_daemon.chat("one", logit_bias=bias), 400)
    assert named in (error["param"] or error["message"])


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_response_format_becomes_a_grammar():
    def grammar(response_format):
        body = {"model": BASE, "messages": [USER], "response_format": response_format}
        return msgspec.json.decode(json.dumps(body), type=ChatRequest).sampling().grammar

    assert grammar(None) is None
    assert grammar({"type": "text"}) is None
    assert grammar({"type": "json_object"}) == to_gbnf({"type": "object"}, "")
    named = {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"}
    assert grammar({"type": "json_schema", "json_schema": named}) == to_gbnf(SCHEMA, "")


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "name"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"minimum": 1}}},
            "response_format.json_schema.schema.minimum",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "x"}}},
            "response_format.json_schema.schema.type",
        ),
    ],
)
def test_response_format_that_cannot_be_kept_is_refused(shared_daemon, response_format, expected):
    error = error_of(shared_daemon.chat("one", response_format=response_format), 400)
    assert expected in f"{error['param']} {error['message']}"


def test_harmless_fields_are_taken(shared_daemon):
    for extra in (
        IGNORED,
        NEUTRAL,
        dict.fromkeys([*IGNORED, *NEUTRAL, "stream", "stream_options"]),
    ):
        assert ok(shared_daemon.chat("one two", **extra))["choices"]


MESSAGES = [
    [{"role": "system", "content": "s"}, USER],
    [{"role": "developer", "content": "s"}, USER],
    [USER, {"role": "assistant", "content": "a"}, USER],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
        }
    ],
    [{**USER, "name": "Zoë"}],
    # What a client sends back of an earlier answer.
    [
        USER,
        {
            "role": "assistant",
            "content": "a",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        USER,
    ],
]


@pytest.mark.parametrize("messages", MESSAGES, ids=range(len(MESSAGES)))
def test_conversations_of_every_shape_are_answered(shared_daemon, messages):
    answer = ok(shared_daemon.chat("", messages=messages))
    assert answer["choices"][0]["message"]["content"] == "".join(ECHO)


@pytest.mark.parametrize("text", ["\U0001f600é\u2028", "a\x00b", "</s><|im_end|>", '"\\\n\t'])
def test_text_comes_back_as_it_went(shared_daemon, text):
    answer = ok(shared_daemon.chat(text))
    assert answer["choices"][0]["message"]["content"] == f"{BASE}:{text}".replace(" ", "")
    *data, _ = stream(shared_daemon, text)
    pieces = (json.loads(each)["choices"][0]["delta"].get("content", "") for each in data)
    assert "".join(pieces) == f"{BASE}:{text}".replace(" ", "")


# --- failures ---


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "status"), [("refuse", 400), ("error", 500), ("crash-at-once", 500)]
)
def test_failure_before_the_first_piece_has_a_status(shared_daemon, content, status, streaming):
    error_of(shared_daemon.chat(content, stream=streaming), status)
    assert ok(shared_daemon.chat("one two"))["choices"]


def test_death_in_the_middle_of_a_stream_is_an_error_event(shared_daemon):
    *data, last = stream(shared_daemon, "crash")
    error = json.loads(last)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == ("engine_died", "server_error")
    text = "".join(json.loads(each)["choices"][0]["delta"].get("content", "") for each in data)
    assert text == "two pieces"
    assert ok(shared_daemon.chat("one two"))["choices"]


def test_death_in_the_middle_of_a_whole_answer_is_an_error(shared_daemon):
    assert error_of(shared_daemon.chat("crash"), 500)["code"] == "engine_died"


@pytest.mark.parametrize(
    ("load", "code"), [("load-failure", "load_failed"), ("load-crash", "engine_died")]
)
def test_model_that_does_not_load_is_an_error(shared_daemon, load, code):
    add_base(shared_daemon.state_dir, load, load=load)
    for streaming in (False, True):
        error = error_of(shared_daemon.chat("hi", model=load, stream=streaming), 500)
        assert error["code"] == code


def test_busy_model_tells_when_to_come_back(daemon_with):
    daemon = daemon_with(max_waiting_requests=1)
    ok(daemon.chat("warm up"))
    with talking(daemon, "hang", stream=False):
        wait_for(lambda: "hang" in engine_log(daemon), "the engine to be busy")
        answer = daemon.chat("one two")
        assert error_of(answer, 429)["type"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1
    wait_for(lambda: daemon.chat("one two").status_code == 200, "the place to be free")


def test_answers_are_counted_and_another_client_still_gets_in(daemon_with):
    daemon = daemon_with(max_waiting_requests=4)
    other = ok(daemon.http.post("/api/v1/keys", json={"name": "other"}))
    ok(daemon.chat("warm up", n=16))
    with talking(daemon, "hang", stream=False, n=3):
        wait_for(lambda: engine_log(daemon).count("asked") == 16 + 3, "the engine to be asked")
        error = error_of(daemon.chat("one two", n=2), 429)
        assert error["code"] == "rate_limit_exceeded"
        with talking(daemon, "hang", n=1):
            wait_for(lambda: engine_log(daemon).count("asked") == 20, "all places to be taken")
            error_of(daemon.chat("one two"), 429)
            with talking(daemon, "one two", key=other["secret"], n=2):
                wait_for(lambda: engine_log(daemon).count("asked") == 22, "the other one to get in")


@pytest.mark.parametrize("n", [1, 2])
def test_key_is_the_client_that_takes_its_turn(shared_daemon, log, n):
    made = ok(shared_daemon.http.post("/api/v1/keys", json={"name": "app"}))
    with shared_daemon.client(made["secret"]) as app:
        ok(app.post("/v1/chat/completions", json={"model": BASE, "messages": [USER], "n": n}))
    assert [line.split()[-1] for line in log("asked")] == [made["id"]] * n


def engine_log(daemon) -> str:
    return (daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log").read_text()


# --- clients that go away ---


@contextmanager
def talking(daemon, content: str, key: str | None = None, **body: object):
    """An open request on a plain socket, which is closed at the end without a word."""
    messages = [{"role": "user", "content": content}]
    data = json.dumps({"model": BASE, "messages": messages, **body}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key or daemon.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        connection.sendall(head.encode() + data)
        yield connection


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", ["slow 100000", "hang"])
def test_client_that_goes_away_stops_the_work(shared_daemon, log, content, streaming):
    ok(shared_daemon.chat("one two"))
    with talking(shared_daemon, content, stream=streaming) as connection:
        wait_for(lambda: content in " ".join(log("generate")), "the engine to begin")
        if streaming and content != "hang":
            assert b"200" in connection.recv(100)
    (began,) = [line for line in log("generate") if content in line]
    request_id = began.split()[1]
    wait_for(lambda: f"cancel {request_id}" in log("cancel"), "the engine to be told")
    # The engine answers one at a time: that this comes back shows that it has stopped.
    ok(shared_daemon.chat("one two"))
    assert f"finish {request_id}" not in log("finish")


def test_client_that_goes_away_while_it_waits_its_turn_is_forgotten(shared_daemon, log):
    ok(shared_daemon.chat("one two"))
    with talking(shared_daemon, "slow 100000", stream=True):
        wait_for(lambda: "slow" in str(log("generate")), "the engine to begin")
        with talking(shared_daemon, "second in line", stream=True):
            wait_for(lambda: len(log("asked")) == 3, "the second one to wait")
    wait_for(
        lambda: len(log("cancel")) == 2, "the engine to be told of both", why=lambda: str(log(""))
    )
    ok(shared_daemon.chat("one two"))
