"""The daemon dies in the middle of everything, and nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from appliance.store.database import BUSY_TIMEOUT_MILLISECONDS
from tests.daemon_process import (
    BASE,
    DaemonProcess,
    add_base,
    group_members,
    ok,
    wait_for,
)

# Each starts the daemon two or three times.
pytestmark = pytest.mark.slow

STATE = ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/api/v1/keys")


def everything(daemon):
    """What the daemon has acknowledged."""
    found = {path: ok(daemon.http.get(path))["data"] for path in STATE}
    for job in found["/v1/fine_tuning/jobs"]:
        found[job["id"]] = daemon.events(job["id"])
    for file in found["/v1/files"]:
        found[file["id"]] = daemon.http.get(f"/v1/files/{file['id']}/content").content
    return found


def test_nothing_acknowledged_is_lost_by_a_kill(daemon):
    succeeded = daemon.wait_for_job(daemon.create_job(suffix="a")["id"])
    failed = daemon.wait_for_job(daemon.create_job("crash")["id"])
    daemon.upload(b"\x00\xff" * 1000, purpose="user_data", name="ü b.bin")
    ok(daemon.http.post("/api/v1/keys", json={"name": "line 3"}))
    assert (succeeded["status"], failed["status"]) == ("succeeded", "failed")
    before = everything(daemon)
    scratch = daemon.state_dir / "jobs" / failed["id"] / "release" / "intermediate"
    scratch.mkdir(parents=True)
    finished = scratch.with_name("model-Q8_0.gguf")
    finished.write_bytes(b"of a release that failed at its next file")
    daemon.restart()
    assert everything(daemon) == before
    wait_for(lambda: not scratch.exists(), "what the job had half made to be removed")
    wait_for(lambda: not finished.exists(), "the file of a failed release to be removed")
    answer = ok(daemon.chat("again", model=succeeded["fine_tuned_model"]))
    assert answer["choices"][0]["message"]["content"].endswith("again")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_training_goes_on_where_it_was(daemon, how):
    job = daemon.create_job("long")
    waiting = daemon.create_job()
    daemon.wait_for_event(job["id"], "Step 8/")
    before = daemon.events(job["id"])
    getattr(daemon, how)()
    daemon.start()
    done = daemon.wait_for_job(job["id"])
    assert done["status"] == "succeeded"
    after = daemon.events(job["id"])
    assert after[: len(before)] == before
    told = [event["message"] for event in after]
    assert "The appliance was restarted" in told
    steps = [message for message in told if message.startswith("Step ")]
    assert steps == [f"Step {n}/120" for n in range(1, 121)]
    # The trainer found its checkpoints: it did not begin anew.
    resumed = next(message for message in told if message.startswith("went on from step"))
    assert int(resumed.split()[-1]) >= 8
    assert daemon.wait_for_job(waiting["id"])["status"] == "succeeded"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_no_process_outlives_the_daemon(daemon, how):
    ok(daemon.chat("hello"))
    log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    engine = int(log.read_text().split()[1])
    job = daemon.create_job("hang")
    daemon.wait_for_event(job["id"], "hanging as")
    trainer = int((daemon.state_dir / "jobs" / job["id"] / "training" / "hung.pid").read_text())
    assert len(group_members(trainer)) == 2
    assert group_members(engine) == [engine]
    status = getattr(daemon, how)()
    assert status in (0, None)
    wait_for(lambda: not group_members(trainer) + group_members(engine), "the children to be gone")


def keep_stream_open(daemon, stack):
    messages = [{"role": "user", "content": "slow 10000"}]
    body = {"model": BASE, "messages": messages, "stream": True}
    client = stack.enter_context(daemon.client(daemon.key))
    response = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
    # Kept: a generator that is dropped closes the connection.
    lines = response.iter_lines()
    next(lines)
    return lines


def keep_answer_waiting(daemon, stack):
    messages = [{"role": "user", "content": "hang"}]
    client = stack.enter_context(daemon.client(daemon.key))
    body = {"model": BASE, "messages": messages}
    asked = threading.Thread(
        target=client.post, args=("/v1/chat/completions",), kwargs={"json": body}
    )
    asked.start()
    stack.callback(asked.join)
    log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    wait_for(lambda: log.exists() and "generate" in log.read_text(), "the engine to begin")
    return asked


def keep_download_unread(daemon, stack):
    file = daemon.upload(b"x" * (32 << 20), purpose="user_data")
    client = stack.enter_context(daemon.client(daemon.key))
    pieces = stack.enter_context(client.stream("GET", f"/v1/files/{file['id']}/content")).iter_raw()
    next(pieces)
    return pieces


def keep_request_half_sent(daemon, stack):
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.key}\r\n"
    connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize(
    "keep", [keep_stream_open, keep_answer_waiting, keep_download_unread, keep_request_half_sent]
)
def test_stop_waits_for_no_client(daemon_with, keep):
    daemon = daemon_with(drain_seconds=0.2)
    with contextlib.ExitStack() as stack:
        kept = keep(daemon, stack)
        assert (daemon.state_dir / "daemon.lock").read_text() == str(daemon.pid)
        assert daemon.stop() == 0
        # Its number may soon be another process's.
        assert (daemon.state_dir / "daemon.lock").read_text() == ""
        assert kept is not None


def test_stop_waits_for_no_check_of_an_upload_whose_client_has_gone(daemon_with):
    size = 200 << 20
    daemon = daemon_with(max_upload_bytes=2 * size)
    incoming = daemon.state_dir / "blobs" / "incoming"
    head, tail = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
        b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n',
        b"\r\n--b--\r\n",
    )
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.key}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(head) + size + len(tail)}\r\n\r\n".encode()
        )
        connection.sendall(head)
        for _ in range(size >> 20):
            connection.sendall(b"\n" * (1 << 20))
        connection.sendall(tail)
        wait_for(
            lambda: [path for path in incoming.iterdir() if path.stat().st_size >= size],
            "the upload to be received",
        )
    # The check would take more than a minute, and `stop` waits for half of one.
    assert daemon.stop() == 0
    assert "is cut" not in daemon.log.read_text()
    assert list(incoming.iterdir()) == []
    assert (daemon.state_dir / "daemon.lock").read_text() == ""


def test_end_in_the_midst_of_starting_leaves_no_process_id(daemon):
    daemon.stop()
    lock = daemon.state_dir / "daemon.lock"
    started = subprocess.Popen(
        [sys.executable, "-m", *daemon.module],
        env=daemon.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=daemon.state_dir.parent,
    )
    # Most often it is still building; on a machine so slow that it is not, it has to end as well.
    wait_for(lambda: lock.read_text() == str(started.pid), "the process id")
    started.terminate()
    assert started.wait(timeout=30) == 0
    assert lock.read_text() == ""


def test_job_cancelled_before_a_kill_stays_cancelled(daemon):
    job = daemon.create_job("hang")
    daemon.wait_for_event(job["id"], "hanging as")
    ok(daemon.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    daemon.restart()
    assert daemon.wait_for_job(daemon.create_job()["id"])["status"] == "succeeded"
    assert daemon.job(job["id"])["status"] == "cancelled"


def test_stalled_training_is_stopped_and_told(daemon_with):
    daemon = daemon_with(stall_timeout_seconds=1)
    # Much output, and none of it progress.
    job = daemon.wait_for_job(daemon.create_job("chatter")["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "child_stalled")


def test_second_daemon_on_the_same_state_is_refused(daemon):
    second = DaemonProcess(daemon.state_dir)
    second.log = daemon.log.with_name("second.log")
    with contextlib.closing(second), pytest.raises(AssertionError, match="already_running"):
        second.start()
    ok(daemon.http.get("/v1/files"))


def test_daemon_whose_port_is_taken_says_so(daemon, tmp_path):
    add_base(tmp_path / "other")
    second = DaemonProcess(tmp_path / "other")
    second.port = daemon.port
    with contextlib.closing(second), pytest.raises(AssertionError, match="cannot_listen"):
        second.start()
    ok(daemon.http.get("/v1/files"))


def test_job_whose_data_is_gone_fails_and_says_so(daemon):
    running, waiting = daemon.create_job("long"), daemon.create_job()
    daemon.kill()
    (daemon.state_dir / "jobs" / waiting["id"] / "data" / "train.jsonl").unlink()
    daemon.start()
    assert daemon.wait_for_job(running["id"])["status"] == "succeeded"
    assert daemon.wait_for_job(waiting["id"])["status"] == "failed"


def test_training_survives_a_database_that_another_program_locks_for_long(daemon):
    job = daemon.create_job("long")
    daemon.wait_for_event(job["id"], "Step 8/")
    path = daemon.state_dir / "appliance.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # Longer than the daemon waits for a lock.
        time.sleep(BUSY_TIMEOUT_MILLISECONDS / 1000 + 2)
        other.execute("ROLLBACK")
    assert daemon.wait_for_job(job["id"])["status"] == "succeeded"
    steps = [e["message"] for e in daemon.events(job["id"]) if e["message"].startswith("Step ")]
    assert steps == [f"Step {n}/120" for n in range(1, 121)]
