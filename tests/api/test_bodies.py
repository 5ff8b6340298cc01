"""Bodies that are too large, too slow or not what they say: cut, told, and never held in memory."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from tests.daemon_process import BASE, error_of, ok, rows, wait_for

CHAT = "/v1/chat/completions"
MIB = 1 << 20
SENT_BYTES = 96 * MIB
GROWTH_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def daemon(shared_daemon):
    """Files may have 1 MiB, other bodies 256 KiB."""
    ok(shared_daemon.chat("warm up"))
    shared_daemon.upload(rows())
    return shared_daemon


def multipart(field: bytes) -> tuple[bytes, bytes, dict[str, str]]:
    """Head and tail of a form whose one large part is `field`, and its headers."""
    head = b"--b\r\nContent-Disposition: form-data; " + field + b"\r\n\r\n"
    purpose = (
        b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'
    )
    return head, purpose, {"Content-Type": "multipart/form-data; boundary=b"}


def send(
    daemon, path: str, headers: dict[str, str], parts, *, chunked: bool
) -> httpx.Response | None:
    """POST over a plain socket, until the daemon cuts it; None if it cut without a word."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {daemon.key}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["Transfer-Encoding: chunked"] if chunked else []
        answer = b""
        try:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            for part in parts:
                connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            if chunked:
                connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        try:
            while piece := connection.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and answer.rstrip().endswith(b"}"):
                    break
        except OSError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return None
    fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    if "transfer-encoding" in fields:
        body = body[body.index(b"{") : body.rindex(b"}") + 1]
        del fields["transfer-encoding"]
    return httpx.Response(int(head.split()[1]), headers=fields, content=body)


def pieces(head: bytes, tail: bytes, total: int):
    yield head
    for _ in range(total // 65536):
        yield b"x" * 65536
    yield tail


TOO_LARGE = [
    ("file", "/v1/files", multipart(b'name="file"; filename="f"')),
    ("field", "/v1/files", multipart(b'name="note"')),
    ("chat", CHAT, (b'{"model": "', b'"}', {"Content-Type": "application/json"})),
    ("job", "/v1/fine_tuning/jobs", (b'{"model": "', b'"}', {"Content-Type": "application/json"})),
    ("form", "/v1/files", (b"file=", b"", {"Content-Type": "application/x-www-form-urlencoded"})),
]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("what", "path", "form"), TOO_LARGE, ids=[each[0] for each in TOO_LARGE])
def test_too_large_body_is_refused_and_not_held_in_memory(daemon, what, path, form, chunked):
    head, tail, headers = form
    if not chunked:
        length = len(head) + len(tail) + SENT_BYTES
        headers = {**headers, "Content-Length": str(length)}
    growth_bytes = daemon.watch_memory()
    answer = send(daemon, path, headers, pieces(head, tail, SENT_BYTES), chunked=chunked)
    assert growth_bytes() < GROWTH_BYTES
    # A connection that is cut while the client still sends may lose the answer.
    if answer is not None:
        refused = (413, 400) if what in ("form", "field") else (413,)
        assert answer.status_code in refused
        error_of(answer, answer.status_code)
    ok(daemon.http.get("/v1/models"))


def test_too_large_file_is_told(daemon):
    form = {"files": {"file": ("f", b"x" * (MIB + 1))}, "data": {"purpose": "user_data"}}
    error = error_of(daemon.http.post("/v1/files", **form), 413)
    assert error["code"] == "file_too_large"
    assert str(MIB) in error["message"]


def test_too_large_json_is_told(daemon):
    error = error_of(daemon.chat("x" * (256 << 10)), 413)
    assert error["code"] == "request_too_large"


def test_largest_file_that_is_allowed_is_stored(daemon):
    assert daemon.upload(b"x" * MIB, purpose="user_data")["bytes"] == MIB


def test_text_field_of_a_form_cannot_fill_the_memory(daemon_with):
    daemon = daemon_with()  # with its half gigabyte for files
    head, tail, headers = multipart(b'name="note"')
    growth_bytes = daemon.watch_memory()
    send(daemon, "/v1/files", headers, pieces(head, tail, 256 * MIB), chunked=True)
    assert growth_bytes() < GROWTH_BYTES
    head, tail, headers = TOO_LARGE[-1][2]
    send(daemon, "/v1/files", headers, pieces(head, tail, 256 * MIB), chunked=True)
    assert growth_bytes() < GROWTH_BYTES
    ok(daemon.http.get("/v1/models"))


def test_dribbled_and_silent_bodies_are_cut(daemon_with):
    daemon = daemon_with(body_timeout_seconds=0.5)
    for path, content_type in (
        (CHAT, "application/json"),
        ("/v1/files", "multipart/form-data; boundary=b"),
    ):
        request = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.key}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: 1000\r\n\r\n--b\r\n"
        )
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(65536)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b'"code":"request_timeout"' in answer
    ok(daemon.chat("still there"))


def test_body_that_pauses_less_than_the_timeout_is_taken(daemon_with):
    daemon = daemon_with(body_timeout_seconds=5)
    body = json.dumps({"model": BASE, "messages": [{"role": "user", "content": "slowly"}]})

    def dribble():
        for start in range(0, len(body), 20):
            time.sleep(0.05)
            yield body[start : start + 20].encode()

    answer = daemon.http.post(CHAT, content=dribble(), headers={"Content-Type": "application/json"})
    assert ok(answer)["choices"][0]["message"]["content"].endswith("slowly")


FORMS = [
    (b"", "multipart/form-data; boundary=b"),
    (b"--b--\r\n", "multipart/form-data; boundary=b"),
    (b"no form at all", "multipart/form-data; boundary=b"),
    (b"x", "multipart/form-data"),
    (b"x", "multipart/form-data; boundary="),
    (
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        "multipart/form-data; boundary=b",
    ),
    (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx',
        "multipart/form-data; boundary=b",
    ),
    (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\xff\xfe\r\n--b--\r\n',
        "multipart/form-data; boundary=b",
    ),
    (
        b"--b\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n",
        "multipart/form-data; boundary=b",
    ),
    (
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 2000 + b"--b--\r\n",
        "multipart/form-data; boundary=b",
    ),
    (b"file=x&purpose=user_data", "application/x-www-form-urlencoded"),
    (b"x", "text/plain"),
    (b"{}", ""),
]


@pytest.mark.parametrize(("content", "kind"), FORMS, ids=range(len(FORMS)))
def test_form_that_is_none_is_the_callers_fault(daemon, content, kind):
    answer = daemon.http.post("/v1/files", content=content, headers={"Content-Type": kind})
    assert error_of(answer, 400)["type"] == "invalid_request_error"


def test_forms_are_many():
    assert len(FORMS) == 13


@pytest.mark.parametrize("purpose", ["", "training", "fine-tune-results", "FINE-TUNE", "é"])
def test_other_purpose_is_refused(daemon, purpose):
    form = {"files": {"file": ("f", rows())}, "data": {"purpose": purpose}}
    assert error_of(daemon.http.post("/v1/files", **form), 400)["param"] == "purpose"


NAMES = [
    ("train.jsonl", "train.jsonl"),
    ("../../etc/passwd", "passwd"),
    ("C:\\data\\a.jsonl", "a.jsonl"),
    ('a"b.jsonl', 'a"b.jsonl'),
    ("naïve \U0001f600.jsonl", "naïve \U0001f600.jsonl"),
    ("a\r\nSet-Cookie: x=1", None),
    ("x" * 300, "x" * 255),
    ("..", ".."),
]


@pytest.mark.parametrize(("given", "kept"), NAMES)
def test_filename_is_only_a_name(daemon, given, kept):
    file = daemon.upload(b"bytes", purpose="user_data", name=given)
    if kept is not None:
        assert file["filename"] == kept
    answer = daemon.http.get(f"/v1/files/{file['id']}/content")
    assert answer.content == b"bytes"
    assert "set-cookie" not in answer.headers
    assert ok(daemon.http.get(f"/v1/files/{file['id']}")) == file


def test_methods_that_nobody_knows_do_not_fill_the_metrics(daemon):
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as connection:
        for number in range(5):
            connection.sendall(f"ODD{number} /v1/files HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(65536)
    text = wait_for(lambda: daemon.http.get("/metrics").text, "metrics")
    assert "ODD" not in text
    assert "appliance_http_requests_total" in text


def test_answer_that_comes_before_the_whole_body_announces_the_end_of_the_connection(daemon):
    head, tail, headers = multipart(b'name="note"')
    answer = send(daemon, "/v1/files", headers, pieces(head, tail, 4 * MIB), chunked=True)
    assert answer is None or answer.headers["connection"] == "close"
    form = {"files": {"other": ("f", b"x" * MIB)}, "data": {"purpose": "user_data"}}
    refused = daemon.http.post("/v1/files", **form)
    assert error_of(refused, 400)["code"] == "invalid_form"
    assert refused.headers["connection"] == "close"
    assert "connection" not in daemon.http.get("/v1/models").headers


@pytest.mark.parametrize("path", [CHAT, "/v1/fine_tuning/jobs", "/api/v1/keys"])
def test_text_that_is_not_utf8_is_told(daemon, path):
    body = b'{"model": "\xed\xa0\x80", "training_file": "x", "name": "\xff"}'
    answer = daemon.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert "UTF-8" in error_of(answer, 400)["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
def test_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_ours(daemon_with, path):
    daemon = daemon_with()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.key}\r\n"
    kind = "application/json" if path == CHAT else "multipart/form-data; boundary=b"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
            rest = f"Content-Type: {kind}\r\nContent-Length: 100\r\n\r\n--b"
            connection.sendall((head + rest).encode())
    ok(daemon.http.get("/v1/models"))
    assert daemon.stop() == 0
    assert "ERROR" not in daemon.log.read_text()


def test_download_goes_on_when_the_file_is_deleted(daemon_with):
    daemon = daemon_with()
    content = bytes(range(256)) * (8 << 12)
    file = daemon.upload(content, purpose="user_data", name="ü b.bin")
    path = f"/v1/files/{file['id']}"
    with daemon.http.stream("GET", f"{path}/content") as answer:
        pieces = answer.iter_raw()
        got = next(pieces)
        with daemon.client(daemon.key) as other:
            ok(other.delete(path))
        assert got + b"".join(pieces) == content
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%BC%20b.bin"
    assert error_of(daemon.http.get(f"{path}/content"), 404)["code"] == "file_not_found"
