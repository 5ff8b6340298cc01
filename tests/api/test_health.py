"""Health, readiness, metrics, and the interface's own description."""

from __future__ import annotations

import json

from appliance import __version__
from tests.daemon_process import BASE, DaemonProcess, add_base, ok, wait_for


def test_health_says_the_version(shared_daemon):
    assert ok(shared_daemon.http.get("/healthz")) == {"status": "ok", "version": __version__}


def test_readiness_names_what_is_missing(state_dir):
    daemon = DaemonProcess(state_dir)
    try:
        answer = daemon.start().http.get("/readyz")
    finally:
        daemon.close()
    assert answer.status_code == 503
    assert answer.json()["status"] == "not ready"
    assert answer.json()["checks"]["models"] == "no base model has been imported"
    assert answer.json()["checks"]["database"] == "ok"


# As the fake engine tells it.
LOAD = {"running": 1, "waiting": 2, "cells": 42}


def test_metrics_count_requests_tokens_jobs_and_models(shared_daemon):
    ok(shared_daemon.chat("one two three"))
    before = metrics(shared_daemon)
    ok(shared_daemon.chat("one two three"))
    after = metrics(shared_daemon)
    assert after['appliance_tokens_total{kind="prompt"}'] == (
        before['appliance_tokens_total{kind="prompt"}'] + 3
    )
    posted = 'appliance_http_requests_total{method="POST",status="200"}'
    assert after[posted] == before[posted] + 1
    assert f'appliance_model_requests{{model="{BASE}"}}' in after
    assert sum(name.startswith("appliance_jobs{") for name in after) == 6
    told = {name: after[f'appliance_engine_{name}{{model="{BASE}"}}'] for name in LOAD}
    assert told == LOAD


def metrics(daemon) -> dict[str, float]:
    lines = daemon.http.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_log_is_json_line_by_line_and_holds_no_secret(daemon):
    ok(daemon.chat("hello"))
    daemon.wait_for_job(daemon.create_job("crash")["id"])
    key = daemon.key
    wait_for(lambda: "job failed" in daemon.log.read_text(), "the log")
    daemon.stop()
    text = daemon.log.read_text()
    assert all(line.startswith("{") for line in text.splitlines())
    assert key not in text


def test_start_without_a_base_model_says_so(state_dir):
    empty = DaemonProcess(state_dir)
    try:
        empty.start()
        assert "no base model is here yet" in empty.log.read_text()
        add_base(state_dir)
        empty.kill()
        empty.log.unlink()
        empty.start()
        assert "no base model" not in empty.log.read_text()
    finally:
        empty.close()


def test_profile_and_its_reason_are_logged_at_the_start(daemon):
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    (chosen,) = (line for line in lines if line["message"] == "hardware profile chosen")
    assert chosen["profile"]
    assert chosen["reason"]


def test_interface_describes_itself(shared_daemon):
    described = ok(shared_daemon.http.get("/schema/openapi.json"))
    # A page that explains it would come from a public network.
    root = shared_daemon.http.get("/schema")
    assert "html" not in root.headers["content-type"]
    assert "http" not in root.headers.get("location", "")
    assert root.status_code in (200, 404)
    for page in ("swagger", "redoc", "elements", "rapidoc"):
        assert shared_daemon.http.get(f"/schema/{page}").status_code == 404
    operations = [
        each["operationId"] for path in described["paths"].values() for each in path.values()
    ]
    assert len(operations) == len(set(operations)) == 36
