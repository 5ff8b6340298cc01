"""A real daemon at its end: what is new is refused, what is under way is finished or told."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import httpx
import msgspec
import pytest

from appliance.records import JobStatus
from appliance.settings import CHECKOUT, Settings
from tests.daemon_process import BASE, DaemonProcess, error_of, ok, wait_for

LONG_SECONDS = 30
# Of the engine at its own end, of connections, and of a slow machine.
BESIDE_DRAINING_SECONDS = 20


class Asking:
    """A question in a thread of its own; `stream` gives its events as they come."""

    def __init__(self, daemon: DaemonProcess, content: str, stream: bool = False) -> None:
        self.status = 0
        self.headers: httpx.Headers = httpx.Headers()
        self.text = ""
        messages = [{"role": "user", "content": content}]
        body = {"model": BASE, "messages": messages, "stream": stream}
        client = daemon.client(daemon.key)

        def ask() -> None:
            with client, client.stream("POST", "/v1/chat/completions", json=body) as response:
                self.headers, self.status = response.headers, response.status_code
                for piece in response.iter_text():
                    self.text += piece

        self._log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
        self._content = content
        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def begun(self) -> Asking:
        """Once the engine answers it."""
        line = f" {self._content}\n"
        wait_for(
            lambda: self._log.exists() and line in self._log.read_text(), "the engine to begin"
        )
        return self

    def wait(self) -> None:
        self._thread.join(LONG_SECONDS)
        assert not self._thread.is_alive()


def is_refusing(daemon: DaemonProcess) -> bool:
    return daemon.http.get("/v1/models").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_answer_under_way_is_finished_while_new_requests_are_refused(daemon_with, stream):
    daemon = daemon_with(drain_seconds=30)
    under_way = Asking(daemon, "slow 120", stream).begun()
    daemon.tell_to_stop()
    wait_for(lambda: is_refusing(daemon), "the daemon to refuse requests")
    refused = daemon.chat("one two")
    error = error_of(refused, 503)
    assert (error["code"], error["type"]) == ("stopping", "server_error")
    assert int(refused.headers["retry-after"]) >= 1
    ready = daemon.http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["daemon"]) == (503, "is being stopped")
    ok(daemon.http.get("/healthz"))
    assert daemon.http.get("/metrics").is_success
    under_way.wait()
    assert under_way.status == 200
    assert "119 " in under_way.text
    assert under_way.text.endswith("data: [DONE]\n\n") == stream
    # It does not wait any longer than it has to.
    assert daemon.wait() == 0
    assert "answers under way are ended" not in daemon.log.read_text()


def test_request_that_waits_its_turn_is_under_way_too(daemon_with):
    daemon = daemon_with(drain_seconds=30)
    first = Asking(daemon, "slow 80").begun()
    second = Asking(daemon, "one two")
    wait_for(lambda: f'requests{{model="{BASE}"}} 2.0' in daemon.http.get("/metrics").text, "both")
    daemon.tell_to_stop()
    first.wait()
    second.wait()
    assert second.status == 200
    assert daemon.wait() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_takes_too_long_is_ended_and_told(daemon_with, stream):
    daemon = daemon_with(drain_seconds=0.5)
    under_way = Asking(daemon, "slow 100000", stream).begun()
    assert daemon.stop() == 0
    under_way.wait()
    assert under_way.status == (200 if stream else 500)
    last = under_way.text.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "engine_stopped"
    assert "answers under way are ended" in daemon.log.read_text()


def test_second_signal_ends_the_wait(daemon_with):
    daemon = daemon_with(drain_seconds=30)
    under_way = Asking(daemon, "slow 100000").begun()
    daemon.tell_to_stop()
    wait_for(lambda: is_refusing(daemon), "the daemon to refuse requests")
    daemon.tell_to_stop()
    # Before the answer would have been ended by itself, since that is how long this waits.
    under_way.wait()
    assert under_way.status == 500
    assert daemon.wait() == 0


def test_job_is_stopped_before_the_answers_are_finished(daemon_with):
    daemon = daemon_with(drain_seconds=30)
    job = daemon.create_job("hang")
    daemon.wait_for_event(job["id"], "hanging as")
    under_way = Asking(daemon, "slow 100000").begun()
    daemon.tell_to_stop()
    pid = int(next(daemon.state_dir.glob("jobs/*/**/hung.pid")).read_text())
    wait_for(lambda: not is_there(pid), "the job's process to end")
    assert daemon.http.get("/healthz").is_success
    daemon.tell_to_stop()
    under_way.wait()
    assert daemon.wait() == 0
    daemon.start()
    assert daemon.job(job["id"])["status"] in (JobStatus.QUEUED.value, JobStatus.RUNNING.value)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_engine_that_dies_at_the_end_does_not_come_back(daemon_with):
    daemon = daemon_with(drain_seconds=30)
    under_way = Asking(daemon, "slow 100000").begun()
    log = daemon.state_dir / "base_models" / BASE / "model-Q4_K_M.log"
    daemon.tell_to_stop()
    wait_for(lambda: is_refusing(daemon), "the daemon to refuse requests")
    os.kill(int(log.read_text().split()[1]), signal.SIGKILL)
    under_way.wait()
    assert json.loads(under_way.text)["error"]["code"] == "engine_died"
    assert daemon.wait() == 0
    assert log.read_text().count("load ") == 1


def test_idle_daemon_stops_without_a_wait(daemon):
    ok(daemon.chat("one two"))
    assert daemon.stop() == 0
    assert "answers under way are ended" not in daemon.log.read_text()
    assert "cut" not in daemon.log.read_text()


class Hanging(DaemonProcess):
    module = ("tests.fakes.daemon", "hang-at-stop")


def test_stop_that_hangs_is_cut_and_the_log_says_where(state_dir):
    hanging = Hanging(state_dir, drain_seconds=0)
    hanging.start()
    try:
        assert hanging.stop() == 1
        log = hanging.log.read_text()
        assert "most recent call first" in log
        assert "in hang" in log
    finally:
        hanging.close()


def test_service_manager_waits_longer_than_answers_may_take():
    unit = (CHECKOUT / "systemd" / "appliance.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    (field,) = (each for each in msgspec.structs.fields(Settings) if each.name == "drain_seconds")
    longest = field.type.__metadata__[0].le
    assert Settings().drain_seconds <= longest <= int(seconds) - BESIDE_DRAINING_SECONDS
