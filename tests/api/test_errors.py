"""Every kind of error has its status and OpenAI's envelope, however the request goes wrong."""

from __future__ import annotations

import inspect
import json

import pytest
from litestar import Request
from litestar.exceptions import TooManyRequestsException

from appliance import errors
from appliance.api.errors import (
    STATUSES,
    envelope,
    handle_appliance_error,
    handle_http_exception,
)
from appliance.errors import ApplianceError
from tests.daemon_process import BASE, error_of, rows

CHAT = "/v1/chat/completions"
JOBS = "/v1/fine_tuning/jobs"
USER = {"role": "user", "content": "q"}


def test_every_kind_of_error_has_a_status():
    kinds = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, ApplianceError) and kind is not ApplianceError
    }
    assert set(STATUSES) == kinds
    assert len(kinds) == 14
    assert [kind for kind in kinds if STATUSES[kind] == 409] == []


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.__name__)
def test_envelope_holds_what_the_error_says(kind):
    body = envelope(kind("code", "expected a, found b", param="p", next_step="do c")).error
    assert (body.code, body.param) == ("code", "p")
    assert body.message == "expected a, found b; do c"
    assert body.type == (
        "rate_limit_exceeded"
        if STATUSES[kind] == 429
        else "server_error"
        if STATUSES[kind] >= 500
        else "invalid_request_error"
    )


REQUEST = Request({"type": "http", "path": "/", "headers": [], "server": ("x", 1)})


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.__name__)
def test_who_is_to_come_back_is_told_when(kind):
    answer = handle_appliance_error(REQUEST, kind("code", "not now"))
    assert ("Retry-After" in answer.headers) == (STATUSES[kind] in (429, 503))
    assert answer.headers.get("Retry-After") == (
        "30" if kind is errors.NoMemory else "1" if issubclass(kind, errors.Busy) else None
    )


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.2, "1"), (7.01, "8")])
def test_known_time_is_told_in_whole_seconds_and_none_too_early(seconds, told):
    exc = errors.Unavailable("code", "not now", retry_after_seconds=seconds)
    assert handle_appliance_error(REQUEST, exc).headers["Retry-After"] == told


def test_framework_that_refuses_for_now_says_when_too():
    answer = handle_http_exception(REQUEST, TooManyRequestsException())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


def test_tree_is_drawn_as_it_is():
    drawn = set(errors.__doc__.replace("├─", "").replace("└─", "").split())
    assert {kind.__name__ for kind in STATUSES} <= drawn


NESTED = "[" * 200_000

# Method, path, body, then status, code and field of the answer.
BAD_REQUESTS = [
    ("GET", "/nowhere", None, 404, "unknown_url", None),
    ("GET", "/v1", None, 404, "unknown_url", None),
    ("GET", "/v1/chat/completions", None, 405, "unknown_url", None),
    ("PUT", "/v1/files", b"{}", 405, "unknown_url", None),
    ("DELETE", JOBS, None, 405, "unknown_url", None),
    ("GET", "/v1/files/file-none", None, 404, "file_not_found", "file_id"),
    ("GET", "/v1/files/file-none/content", None, 404, "file_not_found", "file_id"),
    ("GET", "/v1/files/..%2F..%2Fetc%2Fpasswd", None, 404, None, None),
    ("GET", "/v1/files/%00", None, 404, "file_not_found", "file_id"),
    ("GET", "/v1/files/%ff%fe", None, 404, None, None),
    ("DELETE", "/v1/files/file-none", None, 404, "file_not_found", "file_id"),
    ("GET", "/v1/files?limit=0", None, 400, "invalid_value", "limit"),
    ("GET", "/v1/files?limit=10001", None, 400, "invalid_value", "limit"),
    ("GET", "/v1/files?limit=ten", None, 400, "invalid_value", "limit"),
    ("GET", f"/v1/files?limit={'9' * 5000}", None, 400, None, None),
    ("GET", "/v1/files?order=up", None, 400, "invalid_value", "order"),
    ("GET", f"{JOBS}?limit=101", None, 400, "invalid_value", "limit"),
    ("GET", f"{JOBS}/ftjob-none", None, 404, "fine_tuning_job_not_found", "fine_tuning_job_id"),
    ("GET", f"{JOBS}/ftjob-none/events", None, 404, "fine_tuning_job_not_found", None),
    ("POST", f"{JOBS}/ftjob-none/cancel", None, 404, "fine_tuning_job_not_found", None),
    ("GET", "/v1/models/none", None, 404, "model_not_found", "model"),
    ("GET", "/v1/models/a%2Fb", None, 404, "model_not_found", "model"),
    ("POST", CHAT, b"", 400, None, None),
    ("POST", CHAT, b"{", 400, None, None),
    ("POST", CHAT, b"\xff\xfe", 400, None, None),
    ("POST", CHAT, b"null", 400, None, None),
    ("POST", CHAT, b"[]", 400, None, None),
    ("POST", CHAT, b'{"messages": []}', 400, None, None),
    ("POST", CHAT, NESTED.encode(), 400, None, None),
    ("POST", CHAT, b'{"model": "m", "messages": [], "x": ' + NESTED.encode(), 400, None, None),
    ("POST", CHAT, b'{"response_format": ' + NESTED.encode(), 400, None, None),
    ("POST", CHAT, {"model": "none", "messages": [USER]}, 404, "model_not_found", "model"),
    ("POST", CHAT, {"model": f"{BASE}@Q8_0", "messages": [USER]}, 404, "model_not_found", "model"),
    ("POST", CHAT, {"model": "", "messages": [USER]}, 400, None, None),
    ("POST", CHAT, {"model": BASE}, 400, None, None),
    ("POST", CHAT, {"model": BASE, "messages": []}, 400, None, None),
    ("POST", CHAT, {"model": BASE, "messages": [{"role": "user"}]}, 400, None, None),
    ("POST", CHAT, {"model": BASE, "messages": [{**USER, "role": "tool"}]}, 400, None, None),
    ("POST", CHAT, {"model": BASE, "messages": [{**USER, "role": "x" * 100_000}]}, 400, None, None),
    ("POST", JOBS, {"model": BASE}, 400, None, None),
    ("POST", JOBS, {"model": "none", "training_file": "f"}, 404, "model_not_found", "model"),
    ("POST", JOBS, {"model": BASE, "training_file": "f"}, 400, "invalid_file", "training_file"),
    ("POST", JOBS, {"model": BASE, "training_file": "f", "suffix": "a b"}, 400, None, None),
    ("POST", JOBS, b'{"integrations": ' + NESTED.encode(), 400, None, None),
    ("POST", "/v1/files", b"{}", 400, None, None),
    ("POST", "/api/v1/keys", {"name": ""}, 400, None, None),
    ("POST", "/api/v1/keys", {"name": "a\n"}, 400, None, None),
    ("POST", "/api/v1/keys", {"name": "a", "admin": True}, 400, None, None),
    ("DELETE", "/api/v1/keys/key-none", None, 404, "key_not_found", "key_id"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    BAD_REQUESTS,
    ids=range(len(BAD_REQUESTS)),
)
def test_bad_request_is_answered_in_the_envelope(
    shared_daemon, method, path, body, status, code, param
):
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if content is not None else {}
    answer = shared_daemon.http.request(method, path, content=content, headers=headers)
    error = error_of(answer, status)
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 2000
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    assert shared_daemon.http.get("/healthz").is_success


def test_bad_requests_are_many():
    assert len(BAD_REQUESTS) == 49


# OpenAI's own field, a value that we cannot honour.
UNSUPPORTED = [
    ("n", 17),
    ("n", 0),
    ("logprobs", "yes"),
    ("top_logprobs", 5),
    ("top_logprobs", 21),
    ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("modalities", ["text", "audio"]),
    ("prediction", {"type": "content", "content": "x"}),
    ("web_search_options", {}),
    # Limits.
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("top_p", 1.1),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 1 << 40),
    ("max_completion_tokens", 1.5),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("seed", 1 << 80),
    ("seed", "x"),
    ("stop", ["a"] * 5),
    ("stop", ["x" * 2000]),
    ("stop", 5),
    ("stream", "yes"),
    ("top_k", -1),
    ("min_p", 2),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("field", "value"), UNSUPPORTED, ids=range(len(UNSUPPORTED)))
def test_what_cannot_be_honoured_is_refused_by_name(shared_daemon, field, value, stream):
    error = error_of(shared_daemon.chat("q", **{"stream": stream, field: value}), 400)
    assert error["param"] == field or field in error["message"]


def test_unsupported_are_many():
    assert len(UNSUPPORTED) == 30


def test_malformed_rows_are_named_by_line_and_field(shared_daemon):
    bad = rows(count=3) + b'{"messages": [{"role": "robot", "content": "x"}]}\n' + rows(count=1)
    form = {"files": {"file": ("t.jsonl", bad)}, "data": {"purpose": "fine-tune"}}
    error = error_of(shared_daemon.http.post("/v1/files", **form), 400)
    assert (error["code"], error["param"]) == ("invalid_jsonl", "file")
    assert "line 4: messages[0].role: Invalid enum value 'robot'" in error["message"]


def test_file_of_another_purpose_is_no_training_file(shared_daemon):
    file = shared_daemon.upload(rows(), purpose="batch")
    body = {"model": BASE, "training_file": file["id"]}
    error = error_of(shared_daemon.http.post(JOBS, json=body), 400)
    assert (error["code"], error["param"]) == ("invalid_file_purpose", "training_file")
    body = {"model": BASE, "training_file": shared_daemon.upload(rows())["id"]}
    body["validation_file"] = file["id"]
    error = error_of(shared_daemon.http.post(JOBS, json=body), 400)
    assert error["param"] == "validation_file"


def test_too_few_rows_are_told_at_creation(shared_daemon):
    file = shared_daemon.upload(rows(count=9))
    body = {"model": BASE, "training_file": file["id"]}
    error = error_of(shared_daemon.http.post(JOBS, json=body), 400)
    assert (error["code"], error["param"]) == ("too_few_rows", "training_file")
