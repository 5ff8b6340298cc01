"""Serving and training share the device's memory: who waits, who makes way, and what everybody can see."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys

import pytest

from appliance.child_records import Progress
from appliance.errors import NoMemory
from appliance.hardware import host
from appliance.hardware.lease import Ledger
from appliance.hardware.probe import ROOT
from appliance.jobs import memory
from tests.daemon_process import BASE, add_base, ok, wait_for
from tests.jobs.test_fitting import CONFIG, LARGE

GIB = 1 << 30
SERVED = "served-base"
# The key-value cache of such a model takes 1.25 GiB at 4,096 tokens.
WIDE_CACHE = {**LARGE, "vocab_size": 64}
FOUR_ROWS = {"per_device_train_batch_size": 4, "max_length": 1024}


@pytest.fixture
def small_device_with(daemon_with, state_dir, tmp_path):
    """`small_device_with(**settings)`: a daemon whose children may have 4 GiB, with a base to train and one
    to serve whose cache is large."""

    def start(**settings: object):
        override = tmp_path / "profile.toml"
        reserve_gib = host.read(ROOT).memory_bytes / GIB - 4
        override.write_text(f"os_reserve_gib = {reserve_gib}\nn_ctx = 4096\n")
        add_base(state_dir, SERVED)
        write_config(state_dir, SERVED, WIDE_CACHE)
        running = daemon_with(profile_override_file=override, **settings)
        write_config(state_dir, BASE, CONFIG)
        return running

    return start


@pytest.fixture
def small_device(small_device_with):
    return small_device_with()


def write_config(state_dir, name, config):
    (state_dir / "base_models" / name / "hf" / "config.json").write_text(json.dumps(config))


def rows(word: str) -> bytes:
    long = {"messages": [{"role": r, "content": "x" * 1500} for r in ("user", "assistant")]}
    first = {"messages": [{"role": r, "content": word} for r in ("user", "assistant")]}
    return "".join(json.dumps(row) + "\n" for row in [first, *[long] * 12]).encode()


def create(daemon, word: str = "plain", **options: object):
    body = {
        "model": BASE,
        "training_file": daemon.upload(rows(word))["id"],
        "appliance": {"advanced": FOUR_ROWS, **options},
        "hyperparameters": {"batch_size": 4},
    }
    return daemon.http.post("/v1/fine_tuning/jobs", json=body)


def holdings(daemon) -> dict[str, str]:
    found = ok(daemon.http.get("/api/v1/hardware"))["memory"]["holdings"]
    return {each["holder"]: each["purpose"] for each in found}


def test_job_that_fits_only_without_serving_is_refused_by_default(small_device):
    ok(small_device.chat("hello", model=SERVED))
    assert holdings(small_device) == {SERVED: "serving"}
    answer = create(small_device)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("fits_only_without_serving", "appliance.policy")
    assert "train_first" in error["message"]


def test_smaller_micro_batches_are_taken_to_fit_beside_serving(small_device):
    ok(small_device.chat("hello", model=SERVED))
    answer = create(small_device, advanced={})
    assert answer.status_code == 200, answer.text
    alone = ok(create(small_device, advanced={}, policy="train_first"))
    sizes = [
        job["appliance"]["plan"]["hyperparameters"]["per_device_train_batch_size"]
        for job in (answer.json(), alone)
    ]
    assert sizes[0] < sizes[1]


def test_training_first_unloads_models_and_loads_them_again(small_device):
    ok(small_device.chat("hello", model=SERVED))
    job = ok(create(small_device, "long", policy="train_first"))
    small_device.wait_for_event(job["id"], f"Unloaded to make room: {SERVED}")
    small_device.wait_for_event(job["id"], "Step 2/")
    assert holdings(small_device) == {job["id"]: "training"}
    shown = subprocess.run(
        [sys.executable, "-m", "appliance", "profile"],
        env={**small_device.environment(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"GiB by {job['id']}" in shown
    refused = small_device.chat("hello", model=SERVED)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "no_memory"
    # Not a second: a client would have used up its retries long before.
    assert refused.headers["retry-after"] == "30"
    assert job["id"] in refused.json()["error"]["message"]
    metrics = small_device.http.get("/metrics").text
    assert f'appliance_memory_held_bytes{{holder="{job["id"]}",purpose="training"}}' in metrics
    assert small_device.wait_for_job(job["id"], "succeeded", "failed")["status"] == "succeeded"
    wait_for(lambda: SERVED in holdings(small_device), "the model to be loaded again")
    ok(small_device.chat("hello", model=SERVED))


def test_models_come_back_when_the_job_is_cancelled(small_device):
    ok(small_device.chat("hello", model=SERVED))
    job = ok(create(small_device, "hang", policy="train_first"))
    small_device.wait_for_event(job["id"], "hanging as")
    ok(small_device.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    wait_for(lambda: holdings(small_device) == {SERVED: "serving"}, "the model to be loaded again")


def test_job_by_serve_first_waits_for_memory_that_was_taken_since(small_device_with):
    device = small_device_with(engine_idle_seconds=1)
    one_row = {"per_device_train_batch_size": 1, "max_length": 1024}
    first = ok(create(device, "hang", advanced=one_row))
    device.wait_for_event(first["id"], "hanging as")
    second = ok(create(device))
    ok(device.chat("hello", model=SERVED))
    ok(device.http.post(f"/v1/fine_tuning/jobs/{first['id']}/cancel"))
    device.wait_for_event(second["id"], "Waiting for memory: training of")
    # Idle models are looked for every ten seconds.
    assert device.wait_for_job(second["id"], "succeeded", "failed")["status"] == "succeeded"


def test_killed_daemon_leaves_no_memory_held(small_device):
    job = ok(create(small_device, "hang"))
    small_device.wait_for_event(job["id"], "hanging as")
    assert holdings(small_device) == {job["id"]: "training"}
    small_device.restart()
    small_device.wait_for_event(job["id"], "hanging as")
    wait_for(lambda: len(holdings(small_device)) == 1, "one lease of the job")
    ok(small_device.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    wait_for(lambda: holdings(small_device) == {}, "no lease")
    left = (small_device.state_dir / "leases").iterdir()
    assert [path.name for path in left] == ["ledger.lock"]


def test_training_that_has_ended_takes_no_memory_again_after_a_restart(small_device):
    job = ok(create(small_device, "release-hang"))
    small_device.wait_for_event(job["id"], "hanging as")
    assert holdings(small_device) == {job["id"]: "release"}
    small_device.kill()
    needed = job["appliance"]["plan"]
    assert needed["release_bytes"] < needed["training_bytes"]
    ledger = Ledger(small_device.state_dir / "leases", 4 * GIB)
    wait_for(lambda: not ledger.holdings(), "the child to be gone")
    # There is room for the release, and for nothing else.
    with ledger.grant("rival", "training", 4 * GIB - needed["release_bytes"]):
        small_device.start()
        both = {"rival": "training", job["id"]: "release"}
        wait_for(lambda: holdings(small_device) == both, "the release to go on")


HELD = NoMemory("no_memory", "held by warm-up", missing_bytes=1, serving_bytes=0)
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [(HELD, "memory: held by warm-up"), (FULL, "room on disk: the state directory should have")],
)
def test_room_at_the_end_is_waited_for_and_said_once(monkeypatch, refusal, words):
    monkeypatch.setattr(memory, "RETRY_SECONDS", 0.01)
    answers: list[object] = [refusal, refusal, refusal, "served"]
    told: list[Progress] = []

    async def serve() -> object:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    held = memory.JobMemory(None, None, None, told.append)
    assert asyncio.run(held.waited_for("serving", serve)) == "served"
    (line,) = told
    assert line.message.startswith(f"Waiting for {words}")
