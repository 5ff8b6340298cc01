"""Clients that read an answer slowly, or not at all, or leave it: nothing is held for them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon_process import BASE, DaemonProcess, ok, wait_for

# More than the buffers of both sides of a connection hold.
WORDS, LETTERS, ANSWERS = 9000, 100, 8
NEVER_SECONDS = 3600.0


@contextmanager
def unread(daemon: DaemonProcess, request: bytes) -> Iterator[socket.socket]:
    """A connection whose client has read the first line of an answer, and reads on when it likes."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", daemon.port))
        connection.sendall(request)
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def head(daemon: DaemonProcess, line: str, *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {daemon.key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def long_stream(daemon: DaemonProcess) -> bytes:
    content = " ".join(["x" * LETTERS] * WORDS)
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": BASE, "messages": messages, "stream": True, "n": ANSWERS}).encode()
    length = f"Content-Length: {len(body)}"
    line = "POST /v1/chat/completions"
    return head(daemon, line, "Content-Type: application/json", length) + body


def users(daemon: DaemonProcess) -> float:
    """Requests that the model is held for."""
    lines = ok_text(daemon, "/metrics").splitlines()
    name = f'appliance_model_requests{{model="{BASE}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def ok_text(daemon: DaemonProcess, path: str) -> str:
    answer = daemon.http.get(path)
    assert answer.status_code == 200
    return answer.text


def written(daemon: DaemonProcess) -> int:
    """Answers that the engine has written to the end, or was told to give up."""
    log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    return sum(line.startswith(("finish", "cancel")) for line in log.read_text().splitlines())


def open_contents(daemon: DaemonProcess) -> int:
    """Uploaded files that the daemon has open."""
    found = 0
    for each in Path(f"/proc/{daemon.pid}/fd").iterdir():
        try:
            found += "/blobs/" in str(each.readlink())
        except FileNotFoundError:
            continue
    return found


def test_client_that_stops_reading_is_cut(daemon_with):
    daemon = daemon_with(body_timeout_seconds=1)
    with unread(daemon, long_stream(daemon)) as connection:
        wait_for(lambda: written(daemon) == ANSWERS, "the engine to have done all it can")
        wait_for(lambda: users(daemon) == 0, "the model to be free")
        # What lies in the buffers can still be read; then the connection ends, and the stream has no end.
        received = bytearray()
        while piece := connection.recv(65536):
            received += piece
    assert b"data: [DONE]" not in received
    assert b"client stopped reading" in daemon.log.read_bytes()
    ok(daemon.chat("still there"))


def test_client_that_leaves_what_it_did_not_read_frees_the_model(daemon_with):
    daemon = daemon_with(body_timeout_seconds=NEVER_SECONDS)
    with unread(daemon, long_stream(daemon)):
        wait_for(lambda: written(daemon) == ANSWERS, "the engine to have done all it can")
        assert users(daemon) == 1
    wait_for(lambda: users(daemon) == 0, "the model to be free")


def test_client_that_reads_slowly_gets_the_whole_answer(daemon_with):
    daemon = daemon_with(body_timeout_seconds=NEVER_SECONDS)
    with unread(daemon, long_stream(daemon)) as connection:
        wait_for(lambda: written(daemon) == ANSWERS, "the engine to have done all it can")
        received = bytearray()
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            received += connection.recv(65536)
    assert received.count(b"x" * LETTERS) == WORDS * ANSWERS


@pytest.fixture
def download():
    """A request for a file that is larger than all buffers."""

    def upload(daemon: DaemonProcess) -> bytes:
        files = {"file": ("a.bin", b"0123456789abcdef" * (1 << 20))}
        answer = daemon.http.post("/v1/files", files=files, data={"purpose": "user_data"})
        return head(daemon, f"GET /v1/files/{ok(answer)['id']}/content")

    return upload


def test_file_whose_download_is_not_read_is_closed(daemon_with, download):
    daemon = daemon_with(body_timeout_seconds=1)
    with unread(daemon, download(daemon)):
        wait_for(lambda: open_contents(daemon) == 0, "the file to be closed")
    ok(daemon.chat("still there"))


def test_file_whose_download_is_left_is_closed(daemon_with, download):
    daemon = daemon_with(body_timeout_seconds=NEVER_SECONDS)
    with unread(daemon, download(daemon)):
        wait_for(lambda: open_contents(daemon) == 1, "the file to be read")
    wait_for(lambda: open_contents(daemon) == 0, "the file to be closed")
